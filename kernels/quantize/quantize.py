"""Quantization of a matrix to FP8 (E4M3) in the layouts of `mify.kernels.quantize.fp8`, as an op of its own.

Norm and SwiGLU quantize in their epilogue (`norm_fp8`, `glu_fp8`); this is for what comes from elsewhere: the gradients
of a linear layer, the output of attention, weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, dispatch

from . import fp8, quantize_ref
from .fp8 import Fp8

dispatch.register("quantize", dispatch.Backend("triton", fp8.triton_refuses), dispatch.Backend("ref", lambda *_: ""))


@torch.library.custom_op("mify::quantize_fp8", mutates_args=())
def _op(x: Tensor, scale: Tensor | None, transpose: bool, impl: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if dispatch.resolve("quantize", impl, x, {"size": x.shape[1]}) == "triton":
        from . import quantize_triton

        return quantize_triton.forward(x, scale, transpose)
    return quantize_ref.forward(x, scale, transpose)


@_op.register_fake
def _(x, scale, transpose, impl):  # type: ignore[no-untyped-def]
    return fp8.empty(x, scale is None, transpose)


def quantize_fp8(x: Tensor, *, scale: Tensor | None = None, transpose: bool = True, impl: str = "auto") -> Fp8:
    """x in FP8; not differentiable, as what uses it (a linear layer) differentiates around it.

    Args:
        x: (T, d) floating, any strides.
        scale: None quantizes by blocks; a positive () fp32 tensor is a delayed scale.
        transpose: whether the second layout is made too.
        impl: see `mify.kernels.dispatch`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    checks.tensor("x", x, dims=2)
    checks.floating("x", x)
    fp8.check_scale(scale, "x", x)
    return fp8.collect(_op(checks.no_overlap("x", x), scale, transpose, impl), scale, transpose)
