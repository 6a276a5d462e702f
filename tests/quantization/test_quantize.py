"""AWQ changes nothing in exact arithmetic and lowers the error after rounding; the pass, its report, its refusals."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mify.cli.app import app
from mify.errors import MifyError
from mify.export.calibration import linear_inputs
from mify.export.hf import HfWeights, export_hf
from mify.export.quantized import is_linear
from mify.export.weights import ModelWeights, tensor_shapes, to_model
from mify.files import read_json
from mify.loading import load
from mify.model import Model
from mify.quantization import layers as layer_pass
from mify.quantization.awq import AwqWeights
from mify.quantization.layers import LayerPass
from mify.quantization.quantize import METHODS, activations_rounded, quantize, read_report, sample_texts
from mify.quantization.scheme import Scheme
from mify.tokenizer import Tokenizer

Sequences = list[list[int]]


def logits(model: Model, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        return model.logits(model(torch.tensor(ids), torch.arange(len(ids)), bounds, len(ids)))


@pytest.mark.parametrize("kind", ["int4", "int8-group"])
def test_the_scaled_model_computes_the_same(model: Model, sequences: Sequences, kind: str) -> None:
    scaled = to_model(AwqWeights(ModelWeights(model), sequences, Scheme(kind, 32)))
    assert not torch.equal(scaled.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    expected, found = logits(model, sequences[0]), logits(scaled, sequences[0])
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()


def test_rounding_hurts_less_after_scaling(
    model: Model, sequences: Sequences, texts: list[str], tokenizer: Tokenizer
) -> None:
    kind = "int4"
    unseen = tokenizer.encode(texts[1])[2000:2200]
    expected = logits(model, unseen)
    error = {}
    for name, source in (("plain", None), ("awq", sequences)):
        weights: Any = ModelWeights(model)
        if source is not None:
            weights = AwqWeights(weights, source, Scheme(kind, 32))
        scheme = Scheme(kind, 32)
        rounded = to_model(weights)
        with torch.no_grad():
            for parameter_name, parameter in rounded.named_parameters():
                if is_linear(parameter_name):
                    parameter.copy_(scheme.decode(scheme.encode(parameter)))
        error[name] = float((logits(rounded, unseen) - expected).square().mean())
    assert error["awq"] < 0.85 * error["plain"]


@pytest.mark.parametrize("kind", ["int4", "int8-group"])
def test_no_layer_gets_worse_on_the_calibration_text(model: Model, sequences: Sequences, kind: str) -> None:
    scheme = Scheme(kind, 32)
    awq = AwqWeights(ModelWeights(model), sequences, scheme)
    better = 0
    for name in filter(is_linear, tensor_shapes(model.config)):
        scaled = awq.tensor(name)
        seen = awq.layers.inputs_of(name)
        assert seen is not None
        plain = model.state_dict()[name]
        before = (seen.rows @ (scheme.decode(scheme.encode(plain)) - plain).T).norm()
        after = (seen.rows / awq.columns[name] @ (scheme.decode(scheme.encode(scaled)) - scaled).T).norm()
        if not name.endswith(("v_proj", "up_proj")):  # whose rows were scaled too, for the layer behind them
            better += int(after < before)
    assert better >= 8  # of ten: what is searched with is rounding without the search of the 4-bit scale


def test_a_pass_layer_by_layer_sees_what_the_whole_model_sees(model: Model, sequences: Sequences) -> None:
    expected = linear_inputs(model, sequences, samples=100)
    found = LayerPass(ModelWeights(model), sequences, samples=100)
    for layer in range(2):
        assert found.advance() == layer
        assert len(found.inputs) == 4
        for name, seen in found.inputs.items():
            right = expected[name]
            assert (seen.tokens, seen.rows.shape) == (right.tokens, right.rows.shape)
            torch.testing.assert_close(seen.mean, right.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(seen.rows, right.rows, rtol=1e-3, atol=1e-4)


def test_one_layer_is_held_and_each_is_read_once(model: Model, sequences: Sequences) -> None:
    class Counting(ModelWeights):
        reads: dict[str, int]

        def tensor(self, name: str) -> Tensor:
            self.reads[name] = self.reads.get(name, 0) + 1
            return super().tensor(name).clone()

    weights = Counting(model)
    weights.reads = {}
    awq = AwqWeights(weights, sequences, Scheme("int4", 32))
    for name in tensor_shapes(weights.config):
        awq.tensor(name)
        held = {layer_pass.layer_of(other) for other in awq.layers.tensors}
        assert len(held) <= 1
    gc.collect()
    in_layers = {name: count for name, count in weights.reads.items() if layer_pass.layer_of(name) is not None}
    assert set(in_layers.values()) == {1}
    # Out of order it still gives the same, by reading again.
    name = "model.layers.0.mlp.down_proj.weight"
    again = AwqWeights(weights, sequences, Scheme("int4", 32)).tensor(name)
    assert torch.equal(awq.tensor(name), again)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_read_back_with_a_report(
    tmp_path: Path, model: Model, sequences: Sequences, method: str
) -> None:
    export_hf(model, tmp_path / "hf")
    report = quantize(HfWeights(tmp_path / "hf"), tmp_path / "q", method, sequences=sequences)
    assert read_report(tmp_path / "q") == {key: value for key, value in report.items() if key != "seconds"}
    assert report["calibration_tokens"] == 1200
    assert len(report["layers"]) == 14
    limits = {"fp8": 0.03, "fp8-weight": 0.03, "fp8-block": 0.03, "int8": 0.012, "awq8": 0.012, "awq4": 0.2}
    for layer in report["layers"]:
        # Feedback moves weights further than rounding alone, to where it shows least in the output.
        assert 0 < layer["weight_error"] < 3 * limits[method]
        assert 0 < layer["output_error"] < limits[method]
    loaded = load(tmp_path / "q")
    expected = logits(model, sequences[1])
    found = logits(loaded, sequences[1])
    assert float((found - expected).norm() / expected.norm()) < 20 * limits[method]
    # The error that is reported is that of the weights that are read back.
    if method.startswith("fp8") or method == "int8":
        name = report["layers"][3]["name"]
        right, got = model.state_dict()[name], loaded.state_dict()[name]
        assert float((got - right).norm() / right.norm()) == pytest.approx(
            report["layers"][3]["weight_error"], rel=1e-4
        )


def test_same_input_gives_the_same_bytes(tmp_path: Path, model: Model, sequences: Sequences) -> None:
    for name in ("a", "b"):
        quantize(ModelWeights(model), tmp_path / name, "awq4", sequences=sequences)
    for file in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_without_calibration_there_is_no_output_error(tmp_path: Path, model: Model) -> None:
    report = quantize(ModelWeights(model), tmp_path / "q", "fp8")
    assert all(layer["output_error"] is None for layer in report["layers"])


def test_activations_are_rounded_only_while_entered(model: Model, sequences: Sequences) -> None:
    before = logits(model, sequences[0])
    with activations_rounded(model, Scheme("fp8")):
        within = logits(model, sequences[0])
    assert torch.equal(logits(model, sequences[0]), before)
    assert 0 < float((within - before).norm() / before.norm()) < 0.3


def test_bad_input(tmp_path: Path, model: Model, sequences: Sequences) -> None:
    weights = ModelWeights(model)
    with pytest.raises(MifyError, match="unknown method 'fp4'"):
        quantize(weights, tmp_path / "q", "fp4")
    with pytest.raises(MifyError, match="has no calibration text"):
        quantize(weights, tmp_path / "q", "awq4")
    with pytest.raises(MifyError, match="has 200 tokens, fewer than 1024"):
        quantize(weights, tmp_path / "q", "awq4", sequences=sequences[:1])
    with pytest.raises(MifyError, match="beyond the 704"):
        quantize(weights, tmp_path / "q", "awq8", sequences=[[900] * 2000])
    with pytest.raises(MifyError, match="no group size"):
        quantize(weights, tmp_path / "q", "awq4", sequences=sequences, group_size=40)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(MifyError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 values"):
        quantize(ModelWeights(model), tmp_path / "q", "fp8")
    assert not (tmp_path / "q").exists()


def test_samples_are_beginnings_in_order_of_id() -> None:
    from mify.curation.documents import Document

    documents = [Document.create(f"{i}" * 9000, "text", "", "MIT", "t", "r", f"{i}") for i in range(3)]
    texts = sample_texts(documents, 6000)
    assert [len(text) for text in texts] == [4000, 2000]
    assert texts == sample_texts(documents[::-1], 6000)


def test_the_command(tmp_path: Path, model: Model, texts: list[str]) -> None:
    from mify.curation.documents import Document, write_documents

    export_hf(model, tmp_path / "hf")
    documents = [Document.create(text, "code", "python", "MIT", "t", "r", "p") for text in texts]
    write_documents(tmp_path / "d.parquet", documents)
    arguments = ["quantize", str(tmp_path / "hf"), "--to", "fp8", "--out", str(tmp_path / "q"),
                 "--calibration", str(tmp_path / "d.parquet"), "--held-out", str(tmp_path / "d.parquet"),
                 "--held-out-bytes", "2000"]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    measured = read_json(tmp_path / "q" / "quantization.json")["held_out_bits_per_byte"]
    assert measured["bytes"] == 2000
    assert measured["after_as_engines_run_it"] == pytest.approx(measured["before"], rel=0.1)
    assert "weights and activations quantized" in done.output.replace("\n", " ")
    wrong = CliRunner().invoke(app, ["quantize", str(tmp_path / "hf"), "--to", "fp3", "--out", str(tmp_path / "r")])
    assert wrong.exit_code == 2
    assert "--to fp3 is not known" in wrong.output
