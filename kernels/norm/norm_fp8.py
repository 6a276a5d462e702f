"""RMSNorm whose result is FP8 (E4M3) in the layouts of `mify.kernels.quantize.fp8`, alone or on top of a residual.

What is quantized is the norm as `rms_norm` gives it, rounded to the dtype of x, so fusing changes no bit but those of
the norm's own sum. The bf16 result is never written: of 8 bytes an element that a norm with a residual moves, 7 remain
with one layout and 8 with both, where separate kernels move 11 and 12.

Not differentiable by itself. The linear layer that reads the FP8 result gives the gradient of the norm's output, and
`rms_norm_backward` takes it from there, with the sum (or x) and 1/rms that are returned here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mify.kernels import checks, dispatch, measured
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Fp8

from . import norm, norm_fp8_cuda, norm_fp8_ref


def _triton_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    return fp8.triton_refuses(device, dtype, shape) or norm.triton_refuses(device, dtype, shape)


dispatch.register(
    "norm_fp8",
    dispatch.Backend("cuda", norm_fp8_cuda.refuses),
    dispatch.Backend("triton", _triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
    like=measured.Like(equal=("size", "transpose")),
)


class NormFp8(NamedTuple):
    """What `rms_norm_fp8` gives.

    Args:
        quantized: the norm.
        total: x + residual, (T, d) in the dtype of x; None without a residual.
        inverse: 1/rms, (T, 1) fp32.
    """

    quantized: Fp8
    total: Tensor | None
    inverse: Tensor


@torch.library.custom_op("mify::rms_norm_fp8", mutates_args=())
def _op(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, scale: Tensor | None, transpose: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backend = dispatch.resolve("norm_fp8", impl, x, {"size": x.shape[1], "transpose": int(transpose)})
    forward = norm_fp8_cuda.forward if backend == "cuda" else norm_fp8_ref.forward
    if backend == "triton":
        from . import norm_fp8_triton

        forward = norm_fp8_triton.forward
    parts, total, inverse = forward(x, residual, weight, eps, scale, transpose)
    return (*parts, x.new_empty(0) if total is None else total, inverse)


@_op.register_fake
def _(x, residual, weight, eps, scale, transpose, impl):  # type: ignore[no-untyped-def]
    total = x.new_empty(0 if residual is None else x.shape)
    return (*fp8.empty(x, scale is None, transpose), total, x.new_empty((x.shape[0], 1), dtype=torch.float32))


def rms_norm_fp8(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    transpose: bool = True,
    impl: str = "auto",
) -> NormFp8:
    """RMSNorm of x, or of x + residual, in FP8.

    Args:
        x, weight, eps: as in `rms_norm`. residual: as x.
        scale: None quantizes by blocks; a positive () fp32 tensor is a delayed scale.
        transpose: whether the second layout is made too.
        impl: see `mify.kernels.dispatch`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    norm.check(x, weight)
    norm.check_eps(eps)
    if residual is not None:
        checks.alike("residual", residual, "x", x)
        residual = checks.no_overlap("residual", residual)
    fp8.check_scale(scale, "x", x)
    x = checks.no_overlap("x", x)
    *parts, total, inverse = _op(x, residual, weight, eps, scale, transpose, impl)
    quantized = fp8.collect(tuple(parts), scale, transpose)
    return NormFp8(quantized, None if residual is None else total, inverse)


def rms_norm_backward(
    grad: Tensor,
    normed: Tensor,
    weight: Tensor,
    inverse: Tensor,
    *,
    grad_total: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The backward pass of `rms_norm_fp8`, which is `rms_norm`'s: dx (and dresidual, the same), dweight.

    Args:
        grad: of the norm's output, (T, d) in the dtype of x.
        normed: what was normed: x, or x + residual.
        inverse: 1/rms, (T, 1) fp32.
        grad_total: of the sum x + residual, where that was used besides.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    norm.check(normed, weight, name="normed")
    checks.alike("grad", grad, "normed", normed)
    if grad_total is not None:
        checks.alike("grad_total", grad_total, "normed", normed)
    checks.tensor("inverse", inverse, dims=2)
    checks.integer("inverse", inverse, torch.promote_types(normed.dtype, torch.float32))
    checks.same("inverse", inverse, "normed", normed, dtype=False)
    if inverse.shape != (normed.shape[0], 1):
        raise ValueError(f"inverse has shape {tuple(inverse.shape)}; it must have ({normed.shape[0]}, 1)")
    result: tuple[Tensor, Tensor] = norm.backward_op(grad, grad_total, normed, weight, inverse, impl)
    return result
