"""Schemes against `compressed-tensors` itself: settings, decoding, packing; blocks that do not fit; bad weights."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from mify.errors import MifyError
from mify.quantization.scheme import LAYOUTS, Scheme, pack, unpack

PRESETS = {"fp8-weight": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK", "int8-weight": "W8A16", "int8-group": "W8A16"}
# Root mean square error over root mean square, of normal weights.
ERRORS = {
    "fp8": 0.027,
    "fp8-weight": 0.027,
    "fp8-block": 0.027,
    "int8": 0.008,
    "int8-weight": 0.008,
    "int8-group": 0.006,
    "int4": 0.12,
}


def scheme(kind: str, group_size: int = 32) -> Scheme:
    return Scheme(kind, group_size if LAYOUTS[kind].strategy == "group" else 0)


def weight(out: int = 48, columns: int = 96) -> torch.Tensor:
    x = torch.randn(out, columns, generator=torch.Generator().manual_seed(1))
    x[5] = 0.0
    return x


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("shape", [(48, 96), (130, 160), (256, 256)])
def test_stored_tensors_are_as_announced_and_decode_to_the_weight(kind: str, shape: tuple[int, int]) -> None:
    ours, x = scheme(kind), weight(*shape)
    stored = ours.encode(x)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in stored.items()} == {
        name: (entry.dtype, entry.shape) for name, entry in ours.entries(shape).items()
    }
    decoded = ours.decode(stored)
    assert (decoded[5] == 0).all()
    assert float((decoded - x).norm() / x.norm()) <= ERRORS[kind]


@pytest.mark.parametrize("kind", PRESETS)
def test_compressed_tensors_reads_the_settings_and_decodes_the_same(kind: str) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    ours = scheme(kind, 128)
    settings = QuantizationConfig.model_validate(ours.quantization_config())
    group = settings.config_groups["group_0"]
    preset = preset_name_to_scheme(PRESETS[kind], ["Linear"])
    fields = ["num_bits", "type", "symmetric", "strategy", "dynamic", "group_size", "block_structure"]
    pairs: list[tuple[Any, Any]] = [(group.weights, preset.weights)]
    if LAYOUTS[kind].activations:  # theirs has no preset for FP8 weights alone, but a format
        pairs.append((group.input_activations, preset.input_activations))
    else:
        assert group.input_activations is None
    for found, expected in pairs:
        for field in fields:
            if kind == "int8-weight" and field in ("strategy", "group_size"):
                continue  # their preset has groups; ours has a scale a row
            assert getattr(found, field) == getattr(expected, field), field
    x = weight(256, 256)
    stored = ours.encode(x)
    compressor = BaseCompressor.load_from_registry(settings.format)
    decoded = compressor.decompress(dict(stored), group)["weight"].float()
    # They multiply in the scale's dtype, bf16; we in fp32.
    assert torch.equal(decoded, ours.decode(stored).bfloat16().float())


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_reversible_and_theirs(bits: int) -> None:
    half = 1 << (bits - 1)
    levels = torch.randint(-half, half, (7, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    levels[0, :2] = torch.tensor([-half, half - 1])
    assert torch.equal(unpack(pack(levels, bits), bits), levels)
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    assert torch.equal(pack_to_int32(levels, bits), pack(levels, bits))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_scheme_is_read_back_from_its_settings(kind: str) -> None:
    ours = scheme(kind, 64)
    assert Scheme.of_config(ours.quantization_config(), "here") == ours


def test_other_quantizations_are_refused_by_name() -> None:
    settings = scheme("fp8-block").quantization_config()
    settings["config_groups"]["group_0"]["weights"]["block_structure"] = [64, 64]
    with pytest.raises(MifyError, match=r"here: quantization_config 'compressed-tensors'.*not one that can be decoded"):
        Scheme.of_config(settings, "here")
    with pytest.raises(MifyError, match="'gptq'"):
        Scheme.of_config({"quant_method": "gptq"}, "here")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_weights_that_are_not_finite_are_refused_by_name(kind: str, bad: float) -> None:
    x = weight()
    x[3, 4] = bad
    with pytest.raises(MifyError, match=r"layers\.0 holds 1 values that are NaN or infinite"):
        scheme(kind).encode(x, "layers.0")


ONE_PASS = """
import torch
from mify.quantization.scheme import Scheme

ours = Scheme("fp8")
patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
tops = [3.3e38, 448.0, 1.0, 0.02, 2.0**-120, 1e-39, 1e-40, 0.0]  # down to where a scale is no bf16
rows = [torch.where(patterns.abs() <= top, patterns, 0.0).to(torch.bfloat16) for top in tops]
odd = torch.randn(3, 77, generator=torch.Generator().manual_seed(0))
for x in (torch.stack(rows), torch.stack(rows).float() * 0.7, odd, odd.bfloat16(), odd.t()):
    once = ours.encode(x)
    parts = ours._encode_rows(x, "a weight", None)
    for name in parts:
        assert torch.equal(once[name].float(), parts[name].float()), (name, x.dtype)
        assert torch.equal(once[name].float().signbit(), parts[name].float().signbit())
"""


@pytest.mark.parametrize("off", ["", "avx2"])
def test_one_pass_over_fp8_rows_gives_the_bits_of_plain_torch(off: str) -> None:
    """Every bf16 value there is, under scales of every size, on every path of the CPU."""
    environment = {**os.environ, "MIFY_CPU_DISABLE": off}
    subprocess.run([sys.executable, "-c", ONE_PASS], check=True, env=environment)


def test_fp8_scales_bring_the_largest_value_to_448() -> None:
    x = weight(256, 256)
    stored = Scheme("fp8-block", scale_dtype=torch.float32).encode(x)
    assert stored["weight_scale"].shape == (2, 2)
    assert stored["weight_scale"][1, 0].item() == pytest.approx(x[128:, :128].abs().max().item() / 448)
    assert stored["weight"].float().abs().max() == 448


@pytest.mark.parametrize("kind", LAYOUTS)
def test_activations_are_rounded_where_engines_do(kind: str) -> None:
    x = torch.randn(5, 160, generator=torch.Generator().manual_seed(2))
    rounded = scheme(kind).round_activations(x)
    if not LAYOUTS[kind].activations:
        assert rounded is x
        return
    assert 0 < float((rounded - x).norm() / x.norm()) < 0.03
    louder = x.clone()
    louder[:, 128:] *= 1e4
    alone = dataclasses.replace(scheme(kind)).round_activations(louder)
    kept = torch.equal(alone[:, :128], rounded[:, :128])
    assert kept == (kind == "fp8-block")  # the other 128 features have a scale of their own


@pytest.mark.parametrize("kind", ["fp8", "fp8-block", "int8", "int8-weight"])
def test_rounding_with_feedback_lowers_the_error_of_the_output(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(96, 96, generator=generator) / 96**0.5
    x = torch.randn(1000, 96, generator=generator) @ mix  # correlated, as inputs are
    unseen = torch.randn(300, 96, generator=generator) @ mix
    w, ours = weight(), scheme(kind)
    plain, fed = ours.encode(w), ours.encode(w, gram=x.t() @ x)
    assert torch.equal(plain["weight_scale"], fed["weight_scale"])
    errors = [(unseen @ (ours.decode(stored) - w).t()).norm() for stored in (plain, fed)]
    assert errors[1] < 0.8 * errors[0]


def test_feedback_without_correlation_is_plain_rounding() -> None:
    w, ours = weight(), scheme("int8")
    fed = ours.encode(w, gram=torch.eye(96) * 5)
    assert torch.equal(fed["weight"], ours.encode(w)["weight"])


def test_channels_that_were_never_used_do_no_harm() -> None:
    x = torch.randn(500, 96, generator=torch.Generator().manual_seed(4))
    x[:, 10:20] = 0
    w, ours = weight(), scheme("fp8")
    stored = ours.encode(w, gram=x.t() @ x)
    decoded = ours.decode(stored)
    assert decoded.isfinite().all()
    assert float((decoded - w).norm() / w.norm()) < 0.05
