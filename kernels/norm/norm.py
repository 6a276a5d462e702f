"""RMSNorm, y = x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, arXiv 1910.07467), over the last dimension.

With a residual, what is normed is x + residual, and that sum is returned besides: the residual stream of a decoder in
one pass. Backward, with n = x/rms, g the gradient of y and h that of the sum (0 without a residual):
dx = (g·w − n·mean(g·w·n)) / rms + h, dresidual = dx, dw = Σ_rows g·n.

The mean, the reciprocal root and the products are fp32 (fp64 for fp64); y and the sum have the dtype of x.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mify.kernels import checks, cpu, dispatch

from . import norm_cpu, norm_ref


def _cpu_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    return cpu.refuses(device, dtype, shape) or ("" if shape["weight_is_float32"] else "its weight must be float32")


def triton_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why the Triton kernels cannot take these tensors, or ""."""
    too_wide = (
        f"it holds a row in registers, and one of {shape['size']} features is too long"
        if shape["size"] > 65_536
        else ""
    )
    return dispatch.triton_refuses(device, dtype, shape) or too_wide


dispatch.register(
    "norm",
    dispatch.Backend("cpu", _cpu_refuses),
    dispatch.Backend("triton", triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _backend(impl: str, x: Tensor, weight: Tensor) -> ModuleType:
    shape = {"size": x.shape[1], "weight_is_float32": weight.dtype == torch.float32}
    name = dispatch.resolve("norm", impl, x, shape)
    if name == "triton":
        from . import norm_triton

        return norm_triton
    return norm_cpu if name == "cpu" else norm_ref


def _forward(x: Tensor, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    y, _, inverse = _backend(impl, x, weight).forward(x, None, weight, eps)
    return y, inverse


_op = torch.library.custom_op("mify::rms_norm", mutates_args=())(_forward)


@_op.register_fake
def _(x, weight, eps, impl):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.promote_types(x.dtype, torch.float32))


def _add_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    y, total, inverse = _backend(impl, x, weight).forward(x, residual, weight, eps)
    return y, total, inverse


_add_op = torch.library.custom_op("mify::add_rms_norm", mutates_args=())(_add_forward)


@_add_op.register_fake
def _(x, residual, weight, eps, impl):  # type: ignore[no-untyped-def]
    inverse = x.new_empty((*x.shape[:-1], 1), dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape), x.new_empty(x.shape), inverse


@torch.library.custom_op("mify::rms_norm_backward", mutates_args=())
def backward_op(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, inverse: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return _backend(impl, x, weight).backward(grad, grad_total, x, weight, inverse)


@backward_op.register_fake
def _(grad, grad_total, x, weight, inverse, impl):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _, ctx.impl = inputs
    ctx.save_for_backward(x, weight, output[1])


def _autograd(ctx, grad, _grad_inverse):  # type: ignore[no-untyped-def]
    return (*backward_op(grad, None, *ctx.saved_tensors, ctx.impl), None, None)


def _add_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, weight, _, ctx.impl = inputs
    # The last norm's sum has no gradient: an absent one costs nothing, zeros would be made and read.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight, output[2])


def _add_autograd(ctx, grad, grad_total, _grad_inverse):  # type: ignore[no-untyped-def]
    total, weight, inverse = ctx.saved_tensors
    if grad is None:
        return grad_total, grad_total, None, None, None
    dx, dweight = backward_op(grad, grad_total, total, weight, inverse, ctx.impl)
    return dx, dx, dweight, None, None


_op.register_autograd(_autograd, setup_context=_setup)
_add_op.register_autograd(_add_autograd, setup_context=_add_setup)


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
    check(x, weight)
    check_eps(eps)
    run = _forward if dispatch.direct() else _op
    y: Tensor = run(checks.no_overlap("x", x), weight, eps, impl)[0]
    return y


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and x + residual; differentiable in all three. Arguments as in `rms_norm`.

    Args:
        residual: as x.

    Returns:
        y and the sum, each (T, d) in the dtype of x.
    """
    check(x, weight)
    check_eps(eps)
    checks.alike("residual", residual, "x", x)
    x, residual = checks.no_overlap("x", x), checks.no_overlap("residual", residual)
    run = _add_forward if dispatch.direct() else _add_op
    y, total, _ = run(x, residual, weight, eps, impl)
    return y, total


def check(x: Tensor, weight: Tensor, *, name: str = "x") -> None:
    """Raises TypeError or ValueError, naming the argument, where these cannot be normed."""
    checks.tensor(name, x, dims=2)
    checks.tensor("weight", weight, dims=1)
    checks.floating(name, x)
    checks.floating("weight", weight)
    checks.same("weight", weight, name, x, dtype=False)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight has {weight.shape[0]} elements; {name} {tuple(x.shape)} asks for {x.shape[1]}")
    if not weight.shape[0]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have at least one feature")


def check_eps(eps: float) -> None:
    """Raises ValueError unless eps is positive."""
    if not eps > 0:
        raise ValueError(f"eps is {eps}; it must be positive")
