"""The TensorRT-LLM folder against one that NVIDIA's ModelOpt 0.47 wrote (golden/make_modelopt.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mify.errors import MifyError
from mify.export.hf import HfWeights, import_hf
from mify.export.modelopt import export_modelopt
from mify.model import Model

GOLDEN = Path(__file__).parent / "golden"


def test_the_layout_and_the_scales_are_modelopts(tmp_path: Path) -> None:
    export_modelopt(import_hf(GOLDEN / "source"), tmp_path / "ours", [list(range(48))])
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    expected = load_file(GOLDEN / "modelopt-fp8" / "model.safetensors")
    assert {name: (part.dtype, part.shape) for name, part in ours.items()} == {
        name: (part.dtype, part.shape) for name, part in expected.items()
    }
    source = HfWeights(GOLDEN / "source")
    for name, part in expected.items():
        if name.endswith("input_scale"):  # theirs from activations in bf16
            assert torch.allclose(ours[name], part, rtol=0.01), name
        elif part.dtype != torch.float8_e4m3fn:
            assert torch.equal(ours[name], part), name
        else:  # they divide in bf16 and round twice, we once
            weight = source.tensor(name).float()
            scale = expected[name + "_scale"]
            error, theirs = (ours[name].float() * scale - weight, part.float() * scale - weight)
            assert error.square().sum() <= theirs.square().sum(), name
    for file in ("hf_quant_config.json", "config.json"):
        found, wanted = (
            json.loads((folder / file).read_text()) for folder in (tmp_path / "ours", GOLDEN / "modelopt-fp8")
        )
        if file == "config.json":
            found, wanted = found["quantization_config"], wanted["quantization_config"]
        assert found == wanted


def test_an_engine_computes_near_the_model(
    tmp_path: Path, make_model: Callable[..., Model], logits: Callable, corpus: list[str]
) -> None:
    """What TensorRT-LLM computes: inputs and weights of each linear layer in FP8 with the stored scales."""
    model = make_model()
    ids = model.require_tokenizer().encode(corpus[0])[:200]
    expected = logits(model, ids)
    export_modelopt(model, tmp_path / "q", [ids])
    stored = load_file(tmp_path / "q" / "model.safetensors")

    def round_input(scale: torch.Tensor) -> Callable:
        return lambda _, inputs: ((inputs[0] / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            weight = stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"]
            module.weight = torch.nn.Parameter(weight)
            module.register_forward_pre_hook(round_input(stored[f"{name}.input_scale"]))
    found = logits(model, ids)
    assert float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()) <= 0.3


def test_no_calibration_text_is_refused(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    with pytest.raises(MifyError, match="no calibration text"):
        export_modelopt(make_model(), tmp_path / "q", [])
    assert list(tmp_path.iterdir()) == []
