"""FP8 in two layouts: the reference against what the layouts promise, the same from every op, and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mify.kernels import add_rms_norm, rms_norm, swiglu
from mify.kernels.mlp.glu_fp8 import swiglu_backward, swiglu_fp8
from mify.kernels.norm.norm_fp8 import rms_norm_backward, rms_norm_fp8
from mify.kernels.quantize.fp8 import BLOCK, DTYPE, LARGEST, Fp8, padded
from mify.kernels.quantize.quantize import quantize_fp8

SIZES = [(1, 1), (5, 200), (128, 128), (130, 256), (257, 64)]


def nearest_e4m3(value: float) -> float:
    """The E4M3 value nearest to `value`, ties to even, by hand."""
    if value == 0 or math.isnan(value):
        return value
    spacing = 2.0 ** (max(math.floor(math.log2(abs(value))), -6) - 3)
    return math.copysign(min(round(abs(value) / spacing) * spacing, LARGEST), value)


def same_bits(a: Tensor, b: Tensor) -> bool:
    kinds = {1: torch.uint8, 4: torch.int32}
    return a.shape == b.shape and torch.equal(a.view(kinds[a.element_size()]), b.view(kinds[b.element_size()]))


def check_blocks(x: Tensor, got: Fp8) -> None:
    """Element by element against arithmetic in Python's own floats."""
    tokens, features = x.shape
    wide = x.float()
    assert got.data.shape == x.shape
    assert got.data.is_contiguous()
    assert got.scale.shape == (tokens, -(-features // BLOCK))
    assert got.scale.numel() < 2 or got.scale.stride()[0] == 1
    for row in range(0, tokens, 37):
        for start in range(0, features, BLOCK):
            block = wide[row, start : start + BLOCK]
            scale = got.scale[row, start // BLOCK].item()
            assert scale == pytest.approx(block.abs().max().item() / LARGEST, rel=1e-6)
            factor = torch.tensor(LARGEST) / block.abs().max()
            expected = [nearest_e4m3(v) for v in (block * factor).tolist()]
            assert got.data[row, start : start + BLOCK].float().tolist() == expected
    if got.data_t is not None and got.scale_t is not None:
        filled = torch.zeros(padded(tokens), features)
        filled[:tokens] = wide
        turned = quantize_fp8(filled.t().contiguous(), transpose=False, impl="ref")
        assert same_bits(got.data_t, turned.data)
        assert same_bits(got.scale_t.contiguous(), turned.scale.contiguous())
        assert got.data_t.is_contiguous()


@pytest.mark.parametrize(("tokens", "features"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks(tokens: int, features: int, dtype: torch.dtype) -> None:
    x = (torch.randn(tokens, features) * torch.logspace(-6, 2, features)).to(dtype)
    got = quantize_fp8(x)
    check_blocks(x, got)
    # Three bits of mantissa: half a unit in the last place is 1/16, and a little for values below 2^-6 of the largest.
    assert ((got.wide() - x.float()).abs() <= x.float().abs() / 16 + got.scale.max() * 2**-10).all()
    assert got.amax is None
    one = quantize_fp8(x, transpose=False)
    assert one.data_t is None
    assert same_bits(one.data, got.data)


@pytest.mark.parametrize(("tokens", "features"), SIZES)
def test_a_delayed_scale_saturates_and_gives_the_largest_value(tokens: int, features: int) -> None:
    x = torch.randn(tokens, features)
    scale = torch.tensor(1 / 256)
    x[0, 0] = 9.0  # 2304 beyond the largest value
    got = quantize_fp8(x, scale=scale)
    assert got.amax == 9.0
    assert got.data[0, 0].float() == LARGEST
    assert got.data.float().flatten().tolist() == [nearest_e4m3(v) for v in (x * 256).flatten().tolist()]
    assert got.data_t is not None
    assert got.data_t.shape == (features, padded(tokens))
    assert torch.equal(got.data_t[:, :tokens].float(), got.data.t().float())
    assert not got.data_t[:, tokens:].float().any()
    assert got.scale is scale
    assert got.scale_t is scale


@pytest.mark.parametrize("scale", [None, torch.tensor(0.5)])
def test_zeros_tiny_values_and_nan(scale: Tensor | None) -> None:
    x = torch.zeros(3, 130)
    got = quantize_fp8(x, scale=scale)
    assert not got.data.float().any()
    assert got.wide().isfinite().all()
    x[1] = 1e-37  # 448 / 1e-37 is no fp32 number
    assert quantize_fp8(x, scale=scale).wide().isfinite().all()
    x[1], x[1, 5], x[2, 0] = 2.0, float("nan"), 7.0
    got = quantize_fp8(x, scale=scale)
    assert got.data.float().isnan().nonzero().tolist() == [[1, 5]]
    assert torch.equal(got.wide()[1, 6:], torch.full((124,), 2.0))
    if scale is not None:
        assert got.amax == 7.0
    x[2, 1] = float("inf")
    assert not quantize_fp8(x, scale=scale).wide()[2, 1].isfinite() or scale is not None


def test_nothing() -> None:
    for shape in ((0, 8), (3, 0)):
        for scale in (None, torch.tensor(1.0)):
            got = quantize_fp8(torch.zeros(shape), scale=scale)
            assert got.data.shape == shape
            assert got.wide_t().shape == (shape[1], padded(shape[0]))


@pytest.mark.parametrize("scale", [None, torch.tensor(0.01)])
def test_the_fused_ops_quantize_what_the_plain_ones_give(scale: Tensor | None) -> None:
    x, r, w = torch.randn(70, 200).bfloat16(), torch.randn(70, 200).bfloat16(), torch.randn(200).bfloat16()
    up = torch.randn(70, 200).bfloat16()
    got = rms_norm_fp8(x, w, scale=scale)
    assert got.total is None
    added = rms_norm_fp8(x, w, residual=r, scale=scale)
    y, total = add_rms_norm(x, r, w, impl="ref")
    assert added.total is not None
    assert torch.equal(added.total, total)
    for one, plain in ((got.quantized, rms_norm(x, w, impl="ref")), (added.quantized, y),
                       (swiglu_fp8(x, up, scale=scale), swiglu(x, up, impl="ref"))):  # fmt: skip
        expected = quantize_fp8(plain, scale=scale)
        for name, a, b in zip(Fp8._fields, one, expected, strict=True):
            assert (a is None and b is None) or same_bits(a, b), name


def test_backward_is_that_of_the_plain_ops() -> None:
    x, r, w = torch.randn(9, 24, requires_grad=True), torch.randn(9, 24), torch.randn(24, requires_grad=True)
    y, total = add_rms_norm(x, r, w, impl="ref")
    grad, grad_total = torch.randn(9, 24), torch.randn(9, 24)
    expected = torch.autograd.grad((y, total), (x, w), (grad, grad_total))
    with torch.no_grad():
        fused = rms_norm_fp8(x, w, residual=r)
        assert fused.total is not None
        got = rms_norm_backward(grad, fused.total, w, fused.inverse, grad_total=grad_total)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    gate, up = torch.randn(9, 24, requires_grad=True), torch.randn(9, 24, requires_grad=True)
    expected = torch.autograd.grad(swiglu(gate, up), (gate, up), grad)
    for a, b in zip(swiglu_backward(grad, gate.detach(), up.detach()), expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match=r"autograd|gradient"):
        rms_norm_fp8(x, w).inverse.sum().backward()


def test_opcheck() -> None:
    tests = ("test_schema", "test_faketensor")
    x, w = torch.randn(5, 130), torch.randn(130)
    for scale in (None, torch.tensor(0.5)):
        for transpose in (False, True):
            torch.library.opcheck(torch.ops.mify.quantize_fp8, (x, scale, transpose, "ref"), test_utils=tests)
            torch.library.opcheck(torch.ops.mify.swiglu_fp8, (x, x * 2, scale, transpose, "ref"), test_utils=tests)
            for residual in (None, x * 2):
                arguments = (x, residual, w, 1e-5, scale, transpose, "ref")
                torch.library.opcheck(torch.ops.mify.rms_norm_fp8, arguments, test_utils=tests)


def test_compiles_in_one_graph() -> None:
    def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        got = rms_norm_fp8(x, w).quantized
        return got.data, got.scale, got.data_t, got.scale_t  # type: ignore[return-value]

    x, w = torch.randn(130, 64), torch.randn(64)
    for a, b in zip(torch.compile(step, backend="aot_eager", fullgraph=True)(x, w), step(x, w), strict=True):
        assert same_bits(a.contiguous(), b.contiguous())


X, W = torch.zeros(3, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: quantize_fp8(X[0]), ValueError, "x has shape"),
        (lambda: quantize_fp8(X.int()), TypeError, "x has dtype"),
        (lambda: quantize_fp8(X, scale=torch.tensor([1.0])), ValueError, "scale has shape"),
        (lambda: quantize_fp8(X, scale=torch.tensor(1)), TypeError, "scale has dtype"),
        (lambda: quantize_fp8(X, scale=torch.tensor(0.0)), ValueError, "scale is 0"),
        (lambda: quantize_fp8(X, scale=torch.tensor(float("nan"))), ValueError, "scale is nan"),
        (lambda: quantize_fp8(X, scale=torch.tensor(1.0, device="meta")), ValueError, "scale is on meta"),
        (lambda: quantize_fp8(X, transpose=False).wide_t(), ValueError, "data_t is None"),
        (lambda: rms_norm_fp8(X, W[:3]), ValueError, "weight has 3"),
        (lambda: rms_norm_fp8(X, W, residual=X[:2]), ValueError, "residual has shape"),
        (lambda: rms_norm_fp8(X, W, scale=X), ValueError, "scale has shape"),
        (lambda: swiglu_fp8(X, X[:2]), ValueError, "up has shape"),
        (lambda: swiglu_backward(X[:2], X, X), ValueError, "grad has shape"),
        (lambda: rms_norm_backward(X[:2], X, W, X[:, :1]), ValueError, "grad has shape"),
    ],
)
def test_mistakes_are_named(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_old_gpus_are_refused_with_the_reason() -> None:
    from mify.kernels import dispatch

    ampere, hopper = dispatch.Device("cuda", (8, 0)), dispatch.Device("cuda", (9, 0))
    shape = {"size": 2560, "transpose": 0}
    for op in ("quantize", "norm_fp8", "glu_fp8"):
        assert dispatch.choose(op, "auto", ampere, torch.bfloat16, shape) == "ref"
        assert dispatch.choose(op, "auto", hopper, torch.bfloat16, shape) == "triton"
        with pytest.raises(ValueError, match=r"8\.9"):
            dispatch.choose(op, "triton", ampere, torch.bfloat16, shape)


def test_dtype() -> None:
    assert quantize_fp8(torch.zeros(2, 2)).data.dtype == DTYPE
