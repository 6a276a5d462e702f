"""Kernels that write FP8 against the reference, bit for bit wherever the same numbers are quantized."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mify.kernels.mlp.glu_fp8 import swiglu_fp8
from mify.kernels.norm.norm_fp8 import rms_norm_fp8
from mify.kernels.quantize.fp8 import Fp8
from mify.kernels.quantize.quantize import quantize_fp8
from mify.testing import layouts, poisoned_memory

SIZES = [(1, 1), (130, 257)]
KINDS = [(delayed, transpose) for delayed in (None, 0.013) for transpose in (True, False)]


def same(got: Fp8, expected: Fp8, what: str = "") -> None:
    for name, a, b in zip(Fp8._fields, got, expected, strict=True):
        if b is None:
            assert a is None, (what, name)
            continue
        assert a is not None
        assert a.shape == b.shape, (what, name)
        kind = torch.uint8 if a.element_size() == 1 else torch.int32
        assert torch.equal(a.contiguous().view(kind), b.contiguous().view(kind)), (what, name)


def scale_of(delayed: float | None, device: str) -> Tensor | None:
    return None if delayed is None else torch.tensor(delayed, device=device)


@pytest.mark.parametrize(("tokens", "features"), SIZES)
@pytest.mark.parametrize(("delayed", "transpose"), KINDS)
def test_quantize(
    tokens: int, features: int, delayed: float | None, transpose: bool, dtype: torch.dtype, device: str
) -> None:
    x = (torch.randn(tokens, features, device=device) * torch.logspace(-5, 3, features, device=device)).to(dtype)
    x[0] = 0.0
    scale = scale_of(delayed, device)
    with poisoned_memory():
        got = quantize_fp8(x, scale=scale, transpose=transpose, impl="triton")
    same(got, quantize_fp8(x, scale=scale, transpose=transpose, impl="ref"))


def test_every_value_rounds_as_torch_rounds(device: str) -> None:
    """All finite half-precision values, ties and subnormals of E4M3 among them."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()].float().to(device).view(-1, 256)
    scale = torch.tensor(1.0, device=device)
    same(
        quantize_fp8(x, scale=scale, transpose=False, impl="triton"),
        quantize_fp8(x, scale=scale, transpose=False, impl="ref"),
    )


@pytest.mark.parametrize(("tokens", "features"), SIZES)
@pytest.mark.parametrize(("delayed", "transpose"), KINDS)
def test_swiglu(
    tokens: int, features: int, delayed: float | None, transpose: bool, dtype: torch.dtype, device: str
) -> None:
    from mify.kernels import swiglu

    both = torch.randn(tokens, 2 * features, device=device).to(dtype)
    gate, up = both[:, :features], both[:, features:]
    scale = scale_of(delayed, device)
    with poisoned_memory():
        got = swiglu_fp8(gate, up, scale=scale, transpose=transpose, impl="triton")
    plain = swiglu(gate, up, impl="triton")
    same(got, quantize_fp8(plain, scale=scale, transpose=transpose, impl="ref"))


@pytest.mark.parametrize(("tokens", "features"), SIZES)
@pytest.mark.parametrize(("delayed", "transpose"), KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_norm(
    tokens: int,
    features: int,
    delayed: float | None,
    transpose: bool,
    residual: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    x, r = (torch.randn(tokens, features, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(features, device=device).to(dtype)
    scale = scale_of(delayed, device)
    with poisoned_memory():
        got = rms_norm_fp8(x, weight, residual=r if residual else None, scale=scale, transpose=transpose, impl="triton")
    normed = x + r if residual else x
    if residual:
        assert got.total is not None
        assert torch.equal(got.total, normed)
    wide = normed.double()
    exact = torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(got.inverse.double(), exact, rtol=1e-6, atol=0)
    # The sum's order is the kernel's own; from 1/rms on every bit is determined.
    y = (normed.float() * got.inverse * weight.float()).to(dtype)
    same(got.quantized, quantize_fp8(y, scale=scale, transpose=transpose, impl="ref"))


def test_any_layout(device: str) -> None:
    x, weight = torch.randn(20, 136, device=device), torch.randn(136, device=device)
    expected = quantize_fp8(x, impl="ref")
    fused = swiglu_fp8(x, x, impl="triton")
    normed = rms_norm_fp8(x, weight, residual=x, impl="triton").quantized
    for name, y in layouts(x):
        same(quantize_fp8(y, impl="triton"), expected, name)
        same(swiglu_fp8(y, y, impl="triton"), fused, name)
        same(rms_norm_fp8(y, weight, residual=y, impl="triton").quantized, normed, name)


def test_nothing_to_do(device: str) -> None:
    for shape in ((0, 8), (0, 200)):
        empty, weight = torch.zeros(shape, device=device), torch.ones(shape[1], device=device)
        for scale in (None, torch.tensor(1.0, device=device)):
            same(quantize_fp8(empty, scale=scale, impl="triton"), quantize_fp8(empty, scale=scale, impl="ref"))
            same(swiglu_fp8(empty, empty, scale=scale, impl="triton"), quantize_fp8(empty, scale=scale, impl="ref"))
            got = rms_norm_fp8(empty, weight, scale=scale, impl="triton")
            same(got.quantized, quantize_fp8(empty, scale=scale, impl="ref"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter's conversion turns NaN into a number")
def test_nan_stays_nan(device: str) -> None:
    x = torch.randn(130, 130, device=device)
    x[3, 7] = float("nan")
    for scale in (None, torch.tensor(0.1, device=device)):
        same(quantize_fp8(x, scale=scale, impl="triton"), quantize_fp8(x, scale=scale, impl="ref"))


def test_opcheck(device: str) -> None:
    tests = ("test_schema", "test_faketensor")
    x, w = torch.randn(5, 130, device=device), torch.randn(130, device=device)
    for scale in (None, torch.tensor(0.5, device=device)):
        torch.library.opcheck(torch.ops.mify.quantize_fp8, (x, scale, True, "triton"), test_utils=tests)
        torch.library.opcheck(torch.ops.mify.swiglu_fp8, (x, x * 2, scale, True, "triton"), test_utils=tests)
        arguments = (x, x * 2, w, 1e-5, scale, True, "triton")
        torch.library.opcheck(torch.ops.mify.rms_norm_fp8, arguments, test_utils=tests)
