"""Models whose weights stay quantized: the same numbers as decoded weights with activations rounded as engines do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_generate import PROMPTS, lively

from mify.engine import Engine, Request, SamplingParams
from mify.errors import MifyError
from mify.export.quantized import export_quantized
from mify.loading import load
from mify.model import Model
from mify.quantization.linear import QuantizedLinear, quantize_linears
from mify.quantization.quantize import activations_rounded
from mify.quantization.scheme import LAYOUTS

SHAPE = {"hidden_size": 64, "ffn_size": 128, "head_dim": 16, "num_query_heads": 4, "num_kv_heads": 2}


def tokens(model: Model) -> list[list[int]]:
    requests = [Request(prompt, SamplingParams(12)) for prompt in PROMPTS]
    return [result.tokens for result in Engine(model, guesses=2).run(requests)]


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_a_quantized_folder_runs_as_it_is_stored(kind: str, tmp_path: Path) -> None:
    folder = export_quantized(lively(**SHAPE), tmp_path / kind, kind)
    kept, decoded = load(folder, quantized=True), load(folder)
    layers = [module for module in kept.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 7 * kept.config.num_layers
    ids = torch.arange(30)
    bounds = torch.tensor([0, 30], dtype=torch.int32)
    with torch.no_grad(), activations_rounded(decoded, layers[0].scheme):
        expected = decoded.logits(decoded(ids, ids, bounds, 30))
        assert torch.equal(kept.logits(kept(ids, ids, bounds, 30)), expected)
        assert tokens(kept) == tokens(decoded)


def test_a_model_in_memory(tmp_path: Path) -> None:
    model = lively(**SHAPE)
    folder = export_quantized(model, tmp_path / "fp8", "fp8")
    quantize_linears(model)
    stored = load(folder, quantized=True)
    for name, part in model.state_dict().items():
        if "_proj" in name:
            assert torch.equal(part, stored.state_dict()[name])
    assert len(tokens(model)[0]) == 12


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    from mify.export.hf import export_hf

    model = lively(**SHAPE)
    folder = export_hf(model, tmp_path / "plain")
    with pytest.raises(MifyError, match="holds no quantized weights"):
        load(folder, quantized=True)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(MifyError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1 values that are NaN or infinite"):
        quantize_linears(model)
    with pytest.raises(MifyError, match="unknown quantization 'int3'"):
        quantize_linears(model, "int3")


@pytest.mark.gpu
def test_fp8_products_on_a_gpu_agree_with_decoded_weights() -> None:
    model = lively(**SHAPE | {"head_dim": 64}).to("cuda", torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(33, 64, device="cuda", dtype=torch.bfloat16)
    quantize_linears(model)
    quantized = model.model.layers[0].mlp.up_proj
    assert isinstance(quantized, QuantizedLinear)
    exact = quantized.scheme.round_activations(x.float()) @ quantized.scheme.decode(quantized.parts()).t()
    torch.testing.assert_close(quantized(x).float(), exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))
    assert not isinstance(layer, QuantizedLinear)
