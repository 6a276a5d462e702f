"""Rotary positions (Su et al. 2021, arXiv 2104.09864) for q and k in one call, in Llama's layout.

With x₁ = x[..., :D/2] and x₂ = x[..., D/2:], the result is (x₁·cos − x₂·sin, x₂·cos + x₁·sin). The turn is orthogonal,
so the backward pass is the same turn by the negative angle and needs neither q nor k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, cpu, dispatch

from . import rotary_cpu, rotary_ref

dispatch.register(
    "rope",
    dispatch.Backend("cpu", cpu.refuses),
    dispatch.Backend("triton", dispatch.triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def rope_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta^(−2i/D), each (T, D/2) fp32, for `positions` (T,) of integers."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.to(torch.float32)[:, None] * (1.0 / theta**exponents)[None, :]
    return angles.cos(), angles.sin()


def _forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool, impl: str) -> tuple[Tensor, Tensor]:
    backend = dispatch.resolve("rope", impl, q, {"head_dim": q.shape[-1]})
    if backend == "triton":
        from . import rotary_triton

        return rotary_triton.rotate(q, k, cos, sin, inverse)
    if backend == "cpu":
        cos, sin = cos.to(q.dtype).contiguous(), sin.to(q.dtype).contiguous()
        return rotary_cpu.rotate(q, cos, sin, inverse), rotary_cpu.rotate(k, cos, sin, inverse)
    sin = -sin if inverse else sin
    return rotary_ref.rotate(q, cos, sin), rotary_ref.rotate(k, cos, sin)


_op = torch.library.custom_op("mify::apply_rope", mutates_args=())(_forward)


@_op.register_fake
def _(q, k, cos, sin, inverse, impl):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, cos, sin, ctx.inverse, ctx.impl = inputs
    ctx.save_for_backward(cos, sin)


def _autograd(ctx, dq, dk):  # type: ignore[no-untyped-def]
    cos, sin = ctx.saved_tensors
    return (*_op(dq, dk, cos, sin, not ctx.inverse, ctx.impl), None, None, None, None)


_op.register_autograd(_autograd, setup_context=_setup)


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """q and k turned to their positions; differentiable in both.

    Args:
        q: (T, Hq, D) floating, any strides, D even. k: (T, Hkv, D), dtype and device of q.
        cos, sin: (T, D/2) fp32 of `rope_angles`, same device. No gradient flows to them.
        impl: see `mify.kernels.dispatch`.

    Returns:
        New contiguous tensors of the shapes and dtype of q and k.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    checks.tensor("q", q, dims=3)
    checks.tensor("k", k, dims=3)
    checks.floating("q", q)
    checks.same("k", k, "q", q)
    tokens, _, dim = q.shape
    if dim % 2:
        raise ValueError(f"q has head dimension {dim}; it must be even")
    if k.shape[0] != tokens or k.shape[2] != dim:
        raise ValueError(f"k has shape {tuple(k.shape)}; q {tuple(q.shape)} asks for ({tokens}, Hkv, {dim})")
    for name, x in (("cos", cos), ("sin", sin)):
        checks.tensor(name, x, dims=2)
        checks.integer(name, x, torch.float32, torch.float64)
        checks.same(name, x, "q", q, dtype=False)
        if x.shape != (tokens, dim // 2):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; q {tuple(q.shape)} asks for ({tokens}, {dim // 2})")
    run = _forward if dispatch.direct() else _op
    result: tuple[Tensor, Tensor] = run(q, k, cos, sin, False, impl)
    return result
