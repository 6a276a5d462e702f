"""Rotary positions against complex multiplication."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from mify.kernels import apply_rope
from mify.kernels.rope.rotary import rope_angles
from mify.testing import compare, layouts

RUNS = [("cpu", torch.float32), *(("ref", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(x₁ + i·x₂)·e^{iφ}: an oracle that shares no line with the kernel."""
    half = x.shape[-1] // 2
    wide = x.double() if x.dtype == torch.float64 else x.float()
    z = (
        torch.complex(wide[..., :half], wide[..., half:])
        * torch.complex(cos, sin).to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)[:, None]
    )
    return torch.cat((z.real, z.imag), -1).to(x.dtype)


def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return turned(q, cos, sin), turned(k, cos, sin)


@pytest.mark.parametrize("dim", [2, 16, 64, 128])
@pytest.mark.parametrize(("impl", "dtype"), RUNS)
def test_forward_and_backward(dim: int, impl: str, dtype: torch.dtype) -> None:
    cos, sin = rope_angles(torch.randint(0, 5000, (30,)), dim, 1e4)
    q, k = torch.randn(30, 4, dim).to(dtype), torch.randn(30, 2, dim).to(dtype)
    compare(partial(apply_rope, impl=impl), plain, (q, k, cos, sin), gradients=(0, 1))


def test_angles_are_those_of_the_formula() -> None:
    positions = torch.tensor([0, 1, 7, 8191])
    cos, sin = rope_angles(positions, 64, 1e6)
    exact = positions.double()[:, None] * 1e6 ** (-torch.arange(0, 64, 2).double() / 64)
    assert cos.dtype == sin.dtype == torch.float32
    assert (cos.double() - exact.cos()).abs().max() < 1e-3  # fp32 angles of 8191 radians are good to 5e-4
    assert (cos[:3].double() - exact[:3].cos()).abs().max() < 1e-6
    assert (sin[:3].double() - exact[:3].sin()).abs().max() < 1e-6


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)
    scores = []
    for shift in (0, 5, 100):
        qr, _ = apply_rope(q, k, *rope_angles(torch.tensor([shift + 9]), 64, 1e4))
        _, kr = apply_rope(q, k, *rope_angles(torch.tensor([shift + 2]), 64, 1e4))
        scores.append((qr * kr).sum())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-4, atol=1e-4)


def test_any_layout() -> None:
    cos, sin = rope_angles(torch.arange(10), 16, 1e4)
    q, k = torch.randn(10, 4, 16), torch.randn(10, 2, 16)
    expected = plain(q, k, cos, sin)
    for (name, q2), (_, k2) in zip(layouts(q), layouts(k), strict=True):
        got = apply_rope(q2, k2, cos, sin)
        torch.testing.assert_close(got, expected, msg=name)
        assert all(x.is_contiguous() for x in got)


def test_opcheck() -> None:
    cos, sin = rope_angles(torch.arange(6), 8, 1e4)
    q, k = torch.randn(6, 4, 8, requires_grad=True), torch.randn(6, 2, 8, requires_grad=True)
    for impl in ("cpu", "ref"):
        torch.library.opcheck(torch.ops.mify.apply_rope, (q, k, cos, sin, False, impl))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(5, 4, 7)}, ValueError, "it must be even"),
        ({"k": torch.zeros(4, 2, 8)}, ValueError, "k has shape"),
        ({"k": torch.zeros(5, 2, 8).half()}, ValueError, "k has dtype"),
        ({"cos": torch.zeros(5, 8)}, ValueError, "cos has shape"),
        ({"sin": torch.zeros(5, 4).half()}, TypeError, "sin has dtype"),
        ({"q": torch.zeros(5, 4, 8).long()}, TypeError, "q has dtype"),
        ({"sin": torch.zeros(5, 4, device="meta")}, ValueError, "sin is on meta"),
    ],
)
def test_mistakes_are_named(change: dict[str, Tensor], error: type[Exception], words: str) -> None:
    arguments = {
        "q": torch.zeros(5, 4, 8), "k": torch.zeros(5, 2, 8), "cos": torch.zeros(5, 4), "sin": torch.zeros(5, 4)
    }  # fmt: skip
    with pytest.raises(error, match=words):
        apply_rope(**{**arguments, **change})
