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


@pytest.mark.parametrize("size", [1, 7, 192])
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


def test_classes_that_are_ruled_out(device: str) -> None:
    """Minus infinity in a whole block of logits, the first one included, adds nothing: it is not NaN."""
    logits = torch.full((3, 40_000), float("-inf"), device=device)
    logits[:, 30_000:30_100] = torch.randn(3, 100, device=device)
    labels = torch.tensor([30_000, 30_099, 30_050], device=device)
    leaf, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = cross_entropy(leaf, labels, impl="triton"), F.cross_entropy(plain, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, plain.grad)


def test_large_logits(device: str) -> None:
    logits, labels = torch.randn(5, 700, device=device) * 300, torch.randint(0, 700, (5,), device=device)
    compare(
        lambda x: cross_entropy(x, labels, impl="triton"),
        lambda x: F.cross_entropy(x, labels, reduction="sum"),
        (logits,),
    )


def test_gradients_of_any_layout(device: str) -> None:
    """An expanded gradient (of a sum), a transposed one, and none at all for the norm's sum."""
    x, r, weight = (torch.randn(*s, device=device) for s in ((6, 8), (6, 8), (8,)))
    q, k = torch.randn(6, 4, 8, device=device), torch.randn(6, 2, 8, device=device)
    cos, sin = rope_angles(torch.arange(6, device=device), 8, 1e4)
    results = []
    for impl in ("triton", "ref"):
        leaves = [t.clone().requires_grad_() for t in (x, r, weight, q, k)]
        a, b, w, qs, ks = leaves
        y, total = add_rms_norm(a, b, w, impl=impl)
        turned_q, turned_k = apply_rope(qs, ks, cos, sin, impl=impl)
        gradient = torch.arange(48.0, device=device).view(8, 6).t()
        outs = [y, swiglu(a, b, impl=impl), turned_q.sum(), turned_k.sum(), total]
        for given in ((gradient, gradient, None, None, gradient), (gradient, None, None, None, None)):
            pairs = [(o, g) for o, g in zip(outs, given, strict=True) if g is not None or o.dim() == 0]
            results.append(
                torch.autograd.grad(
                    [o for o, _ in pairs], leaves, [g for _, g in pairs], retain_graph=True, allow_unused=True
                )
            )
    for got, expected in zip(results[:2], results[2:], strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_opcheck(device: str) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    x, weight = (torch.randn(*s, device=device, requires_grad=True) for s in ((5, 12), (12,)))
    labels = torch.tensor([1, -100, 3, 0, 11], device=device)
    q, k = (torch.randn(5, h, 8, device=device, requires_grad=True) for h in (3, 1))
    angles = rope_angles(torch.arange(5, device=device), 8, 1e4)
    for op, arguments in (
        ("rms_norm", (x, weight, 1e-5, "triton")),
        ("add_rms_norm", (x, x.detach() * 2, weight, 1e-5, "triton")),
        ("apply_rope", (q, k, *angles, False, "triton")),
        ("swiglu", (x, x.detach() * 2, "triton")),
        ("cross_entropy", (x, labels, -100, 0.1, 0.1, "triton")),
        ("linear_cross_entropy", (x, x.detach()[:3] * 2, labels.clamp(max=2), -100, 0.0, 0.0, 2, True, True, "triton")),
    ):
        torch.library.opcheck(getattr(torch.ops.mify, op), arguments, test_utils=tests)


def test_a_row_too_long_for_registers_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        rms_norm(torch.zeros(1, 65_537), torch.ones(65_537), impl="triton")


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
