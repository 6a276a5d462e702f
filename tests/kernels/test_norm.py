"""RMSNorm against torch's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import add_rms_norm, rms_norm
from mify.testing import compare, layouts

RUNS = [("cpu", torch.float32), *(("ref", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))]


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5)


@pytest.mark.parametrize("size", [1, 7, 64, 192, 2560])
@pytest.mark.parametrize(("impl", "dtype"), RUNS)
def test_forward_and_backward(size: int, impl: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(300, size), torch.randn(size)
    compare(partial(rms_norm, impl=impl), plain, (x.to(dtype), weight.to(dtype)))


@pytest.mark.parametrize("size", [1, 7, 192])
@pytest.mark.parametrize(("impl", "dtype"), RUNS)
def test_with_a_residual(size: int, impl: str, dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(300, size), torch.randn(300, size), torch.randn(size)
    compare(
        partial(add_rms_norm, impl=impl),
        lambda x, residual, weight: (plain(x + residual, weight), x + residual),
        (x.to(dtype), residual.to(dtype), weight.to(dtype)),
    )


def test_the_sum_alone_carries_a_gradient() -> None:
    x, residual = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    y, total = add_rms_norm(x, residual, torch.ones(8))
    assert torch.equal(total, x + residual)
    total.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, 8))
    torch.testing.assert_close(residual.grad, torch.ones(5, 8))
    assert y.shape == x.shape


def test_any_layout() -> None:
    x, weight = torch.randn(20, 24), torch.randn(24)
    for name, y in layouts(x):
        for _, w in layouts(weight):
            torch.testing.assert_close(rms_norm(y, w), plain(x, weight), msg=name)
        strided = torch.autograd.grad(rms_norm(a := y.detach().requires_grad_(), weight), a, layout_of(y))[0]
        dense = torch.autograd.grad(rms_norm(b := x.clone().requires_grad_(), weight), b, torch.ones(20, 24))[0]
        torch.testing.assert_close(strided, dense, msg=name)


def layout_of(x: Tensor) -> Tensor:
    return torch.ones_like(x).t().contiguous().t()


def test_extremes() -> None:
    x = torch.zeros(3, 8)
    assert torch.equal(rms_norm(x, torch.ones(8)), x)
    large = torch.full((2, 8), 1e4).half()
    torch.testing.assert_close(rms_norm(large, torch.ones(8).half()), torch.ones(2, 8).half())
    assert rms_norm(torch.zeros(0, 8), torch.ones(8)).shape == (0, 8)


def test_a_wide_weight_keeps_its_gradient_wide() -> None:
    x = torch.randn(5, 8).bfloat16()
    weight = torch.randn(8, requires_grad=True)
    y = rms_norm(x, weight)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_opcheck() -> None:
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    for impl in ("cpu", "ref"):
        torch.library.opcheck(torch.ops.mify.rms_norm, (x, weight, 1e-5, impl))
        torch.library.opcheck(torch.ops.mify.add_rms_norm, (x, x.detach() * 2, weight, 1e-5, impl))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(4)), ValueError, "x has shape"),
        ((torch.zeros(3, 4), torch.zeros(5)), ValueError, "weight has 5"),
        ((torch.zeros(3, 4).int(), torch.zeros(4)), TypeError, "x has dtype"),
        ((torch.zeros(3, 4), torch.zeros(4).int()), TypeError, "weight has dtype"),
        ((torch.zeros(3, 4), torch.zeros(4, device="meta")), ValueError, "weight is on meta"),
        ((torch.zeros(3, 4), torch.zeros(4), 0.0), ValueError, "eps is 0"),
        ((torch.zeros(3, 0), torch.zeros(0)), ValueError, "at least one feature"),
        ((None, torch.zeros(4)), TypeError, "x is a NoneType"),
    ],
)
def test_mistakes_are_named(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rms_norm(*arguments)


def test_mistakes_with_a_residual_are_named() -> None:
    x = torch.zeros(3, 4)
    for residual, error, words in (
        (torch.zeros(2, 4), ValueError, "residual has shape"),
        (torch.zeros(3, 4).half(), ValueError, "residual has dtype"),
        (None, TypeError, "residual is a NoneType"),
    ):
        with pytest.raises(error, match=words):
            add_rms_norm(x, residual, torch.zeros(4))
