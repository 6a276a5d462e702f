"""AWQ: scaling changes nothing in exact arithmetic, and lowers the error after rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mify.errors import MifyError
from mify.export.awq import scale_for_int4
from mify.export.calibration import calibration_sequences, linear_inputs
from mify.export.hf import import_hf
from mify.export.quantized import Scheme, export_quantized
from mify.export.weights import to_model
from mify.model import Model
from mify.tokenizer import Tokenizer

SCHEME = Scheme("int4", 32)


@pytest.fixture(scope="module")
def sequences(tokenizer: Tokenizer, corpus: list[str]) -> list[list[int]]:
    ids = tokenizer.encode(corpus[0])
    return [ids[start : start + 120] for start in range(0, 600, 120)]


@pytest.fixture(scope="module")
def outliers(make_model: Callable[..., Model]) -> Model:
    """A model whose norms let a few channels through much larger, as trained models do."""
    model = make_model(seed=9, num_kv_heads=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[::16] *= 12
            layer.post_attention_layernorm.weight[3::16] *= 12
    return model


def test_the_scaled_model_computes_the_same(
    outliers: Model, sequences: list, logits: Callable, close: Callable
) -> None:
    scaled = to_model(scale_for_int4(outliers, sequences, SCHEME))
    assert not torch.equal(scaled.model.layers[0].mlp.up_proj.weight, outliers.model.layers[0].mlp.up_proj.weight)
    expected, found = logits(outliers, sequences[0]), logits(scaled, sequences[0])
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()


def test_rounding_hurts_less_after_scaling(
    tmp_path: Path, outliers: Model, sequences: list, logits: Callable, corpus: list[str], tokenizer: Tokenizer
) -> None:
    export_quantized(outliers, tmp_path / "plain", "int4", dtype=torch.float32)
    export_quantized(scale_for_int4(outliers, sequences, SCHEME), tmp_path / "awq", "int4", dtype=torch.float32)
    unseen = tokenizer.encode(corpus[1])[2000:2200]
    expected = logits(outliers, unseen)
    error = {
        kind: float((logits(import_hf(tmp_path / kind), unseen) - expected).square().mean())
        for kind in ("plain", "awq")
    }
    assert error["awq"] < 0.85 * error["plain"]


def test_same_text_gives_the_same_scales(outliers: Model, sequences: list) -> None:
    one, two = (scale_for_int4(outliers, sequences, SCHEME) for _ in range(2))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(one.tensor(name), two.tensor(name))


def test_statistics_are_those_of_the_inputs(make_model: Callable[..., Model], sequences: list) -> None:
    model = make_model()
    seen = linear_inputs(model, sequences, samples=50)
    caught: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    linear_inputs(model, sequences)
    handle.remove()
    everything = torch.cat(caught)
    found = seen["model.layers.1.mlp.down_proj.weight"]
    assert found.tokens == len(everything) == sum(map(len, sequences))
    assert found.amax == float(everything.abs().max())
    assert torch.allclose(found.mean, everything.abs().mean(0), rtol=1e-5)
    assert torch.equal(found.rows, everything[:: len(everything) // 50][:50])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_calibration_text_is_read_from_files_folders_and_documents(
    tmp_path: Path, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    from mify.curation.documents import Document, write_documents

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.py").write_text(corpus[0])
    (tmp_path / "folder" / "a.py").write_text("x = 1\n")
    (tmp_path / "folder" / "c.bin").write_bytes(b"\xff\xfe\x00")
    found = calibration_sequences(tmp_path / "folder", tokenizer, context=64, tokens=10_000)
    assert found == [tokenizer.encode("x = 1\n"), tokenizer.encode(corpus[0])[:64]]
    assert calibration_sequences(tmp_path / "folder" / "b.py", tokenizer, context=999, tokens=40) == [
        tokenizer.encode(corpus[0])[:40]
    ]
    document = Document.create("y = 2\n", "code", "python", "MIT", "test", "r", "p.py")
    write_documents(tmp_path / "documents.parquet", [document])
    assert calibration_sequences(tmp_path / "documents.parquet", tokenizer, context=9) == [tokenizer.encode("y = 2\n")]
    for wrong, named in ((tmp_path / "no", "does not exist"), (tmp_path / "folder" / "c.bin", "not UTF-8")):
        with pytest.raises(MifyError, match=named):
            calibration_sequences(wrong, tokenizer, context=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MifyError, match="holds no text"):
        calibration_sequences(tmp_path / "empty", tokenizer, context=9)
