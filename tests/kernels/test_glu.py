"""SwiGLU against torch's silu."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import swiglu
from mify.testing import compare, layouts

RUNS = [("cpu", torch.float32), *(("ref", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))]


def plain(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@pytest.mark.parametrize("size", [1, 13, 512])
@pytest.mark.parametrize(("impl", "dtype"), RUNS)
def test_forward_and_backward(size: int, impl: str, dtype: torch.dtype) -> None:
    compare(partial(swiglu, impl=impl), plain, ((torch.randn(40, size) * 3).to(dtype), torch.randn(40, size).to(dtype)))


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_extremes(impl: str) -> None:
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]], requires_grad=True)
    y = swiglu(gate, torch.ones(1, 5), impl=impl)
    y.sum().backward()
    assert y[0].tolist() == pytest.approx([0, 0, 0, 90, 200], abs=1e-30)
    assert gate.grad is not None
    assert gate.grad.isfinite().all()


def test_any_layout() -> None:
    both = torch.randn(12, 32)
    expected = plain(both[:, :16], both[:, 16:])
    torch.testing.assert_close(swiglu(both[:, :16], both[:, 16:]), expected)
    for (name, gate), (_, up) in zip(layouts(both[:, :16]), list(layouts(both[:, 16:]))[::-1], strict=True):
        torch.testing.assert_close(swiglu(gate, up), expected, msg=name)


def test_opcheck() -> None:
    gate, up = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    for impl in ("cpu", "ref"):
        torch.library.opcheck(torch.ops.mify.swiglu, (gate, up, impl))


@pytest.mark.parametrize(
    ("gate", "up", "error", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), ValueError, "up has shape"),
        (torch.zeros(3), torch.zeros(3), ValueError, "gate has shape"),
        (torch.zeros(3, 4).long(), torch.zeros(3, 4).long(), TypeError, "gate has dtype"),
        (torch.zeros(3, 4), torch.zeros(3, 4).half(), ValueError, "up has dtype"),
        (torch.zeros(3, 4), torch.zeros(3, 4, device="meta"), ValueError, "up is on meta"),
    ],
)
def test_mistakes_are_named(gate: Tensor, up: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        swiglu(gate, up)
