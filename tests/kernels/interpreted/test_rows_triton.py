"""Norm, rotary positions, SwiGLU and the losses in Triton against plain torch, by the rule."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from mify.kernels import add_rms_norm, apply_rope, cross_entropy, linear_cross_entropy, rms_norm, swiglu
from mify.kernels.rope import rotary_ref
from mify.kernels.rope.rotary import rope_angles
from mify.testing import compare, layouts


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5)


@pytest.mark.parametrize("size", [7, 192])
def test_norm(size: int, dtype: torch.dtype, device: str) -> None:
    x, residual, weight = (torch.randn(*s, device=device).to(dtype) for s in ((29, size), (29, size), (size,)))
    compare(partial(rms_norm, impl="triton"), normed, (x, weight))
    compare(
        partial(add_rms_norm, impl="triton"),
        lambda x, residual, weight: (normed(x + residual, weight), x + residual),
        (x, residual, weight),
    )


def test_rope(dtype: torch.dtype, device: str) -> None:
    cos, sin = rope_angles(torch.arange(37, device=device), 48, 1e4)
    q, k = (torch.randn(37, heads, 48, device=device).to(dtype) for heads in (5, 1))
    compare(
        partial(apply_rope, impl="triton"),
        lambda q, k, cos, sin: (rotary_ref.rotate(q, cos, sin), rotary_ref.rotate(k, cos, sin)),
        (q, k, cos, sin),
        gradients=(0, 1),
    )


def test_swiglu(dtype: torch.dtype, device: str) -> None:
    both = torch.randn(9, 2 * 1030, device=device).to(dtype)
    compare(partial(swiglu, impl="triton"), lambda g, u: F.silu(g) * u, (both[:, :1030], both[:, 1030:]))


@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-2, "label_smoothing": 0.2}])
def test_losses(options: dict[str, float], dtype: torch.dtype, device: str) -> None:
    labels = torch.randint(0, 101, (40,), device=device)
    labels[::3] = -100
    x, w = torch.randn(40, 101, device=device).to(dtype), torch.randn(101, 24, device=device).to(dtype)
    h = torch.randn(40, 24, device=device).to(dtype)
    for reduction in ("sum", "none"):
        compare(
            lambda x, r=reduction: cross_entropy(x, labels, reduction=r, impl="triton", **options),
            lambda x, r=reduction: cross_entropy(x, labels, reduction=r, impl="ref", **options),
            (x,),
        )
    compare(
        lambda h, w: linear_cross_entropy(h, w, labels, impl="triton", chunk_rows=16, **options)[0],
        lambda h, w: linear_cross_entropy(h, w, labels, impl="ref", **options)[0],
        (h, w),
    )


def test_a_label_that_is_no_class_gives_nan_not_a_crash() -> None:
    from mify.kernels.loss import ce_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.randn(3, 9, device=device)
    loss = ce_triton.loss_and_gradient_(logits, torch.tensor([2, 9, -1], device=device), -100, 0.0, 0.0, True)
    assert loss.isnan().tolist() == [False, True, True]
    assert logits.isnan().all(1).tolist() == [False, True, True]


def test_any_layout(device: str) -> None:
    x, weight = torch.randn(12, 24, device=device), torch.randn(24, device=device)
    labels = torch.randint(0, 24, (12,), device=device)
    q, k = torch.randn(12, 4, 16, device=device), torch.randn(12, 2, 16, device=device)
    cos, sin = rope_angles(torch.arange(12, device=device), 16, 1e4)
    for name, y in layouts(x):
        torch.testing.assert_close(rms_norm(y, weight, impl="triton"), normed(x, weight), msg=name)
        torch.testing.assert_close(swiglu(y, y, impl="triton"), F.silu(x) * x, msg=name)
        expected = F.cross_entropy(x, labels, reduction="sum")
        torch.testing.assert_close(cross_entropy(y, labels, impl="triton"), expected, msg=name)
    for (name, q2), (_, k2) in zip(layouts(q), layouts(k), strict=True):
        expected_q = rotary_ref.rotate(q, cos, sin)
        torch.testing.assert_close(apply_rope(q2, k2, cos, sin, impl="triton")[0], expected_q, msg=name)


def test_nothing_to_do(device: str) -> None:
    empty = torch.zeros(0, 8, device=device)
    assert rms_norm(empty, torch.ones(8, device=device), impl="triton").shape == (0, 8)
    assert swiglu(empty, empty, impl="triton").shape == (0, 8)
    loss, count = linear_cross_entropy(empty, torch.zeros(5, 8, device=device), empty[:, 0].long(), impl="triton")
    assert (loss.item(), count.item()) == (0.0, 0)
