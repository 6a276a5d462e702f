"""RMSNorm, y = x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, arXiv 1910.07467), over the last dimension.

The mean, the reciprocal root and the product are fp32 (fp64 for fp64); y has the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, dispatch

from . import norm_ref

dispatch.register("norm", dispatch.Backend("ref", lambda *_: ""))


@torch.library.custom_op("mify::rms_norm", mutates_args=())
def _op(x: Tensor, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    dispatch.resolve("norm", impl, x, {"size": x.shape[-1]})
    return norm_ref.forward(x, weight, eps)


@_op.register_fake
def _(x, weight, eps, impl):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("mify::rms_norm_backward", mutates_args=())
def _backward_op(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    dispatch.resolve("norm", impl, x, {"size": x.shape[-1]})
    return norm_ref.backward(grad, x, weight, inverse)


@_backward_op.register_fake
def _(grad, x, weight, inverse, impl):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _, ctx.impl = inputs
    ctx.save_for_backward(x, weight, output[1])


def _autograd(ctx, grad, _grad_inverse):  # type: ignore[no-untyped-def]
    x, weight, inverse = ctx.saved_tensors
    return (*_backward_op(grad, x, weight, inverse, ctx.impl), None, None)


_op.register_autograd(_autograd, setup_context=_setup)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: str = "auto") -> Tensor:
    """RMSNorm of the rows of x; differentiable in x and weight.

    Args:
        x: (T, d) floating, any strides.
        weight: (d,), same device; its dtype may be wider than that of x.
        eps: added to the mean square.
        impl: see `mify.kernels.dispatch`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    checks.tensor("x", x, dims=2)
    checks.tensor("weight", weight, dims=1)
    checks.floating("x", x)
    checks.floating("weight", weight)
    checks.same("weight", weight, "x", x, dtype=False)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight has {weight.shape[0]} elements; x {tuple(x.shape)} asks for {x.shape[1]}")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; it must be positive")
    y: Tensor = _op(x, weight, eps, impl)[0]
    return y
