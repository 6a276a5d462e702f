"""SwiGLU whose result is FP8 (E4M3) in the layouts of `mify.kernels.quantize.fp8`.

What is quantized is silu(gate) · up as `swiglu` gives it, rounded to the dtype of gate: fusing changes no bit. The bf16
result is never written: 5 bytes an element with one layout and 6 with both, where separate kernels move 9 and 10.

Not differentiable by itself: `swiglu_backward` takes the gradient that the linear layer behind it gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, dispatch
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Fp8

from . import glu, glu_fp8_ref

dispatch.register("glu_fp8", dispatch.Backend("triton", fp8.triton_refuses), dispatch.Backend("ref", lambda *_: ""))


@torch.library.custom_op("mify::swiglu_fp8", mutates_args=())
def _op(
    gate: Tensor, up: Tensor, scale: Tensor | None, transpose: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if dispatch.resolve("glu_fp8", impl, gate, {"size": gate.shape[1]}) == "triton":
        from . import glu_fp8_triton

        return glu_fp8_triton.forward(gate, up, scale, transpose)
    return glu_fp8_ref.forward(gate, up, scale, transpose)


@_op.register_fake
def _(gate, up, scale, transpose, impl):  # type: ignore[no-untyped-def]
    return fp8.empty(gate, scale is None, transpose)


def swiglu_fp8(
    gate: Tensor, up: Tensor, *, scale: Tensor | None = None, transpose: bool = True, impl: str = "auto"
) -> Fp8:
    """silu(gate) · up in FP8.

    Args:
        gate, up: as in `swiglu`.
        scale: None quantizes by blocks; a positive () fp32 tensor is a delayed scale.
        transpose: whether the second layout is made too.
        impl: see `mify.kernels.dispatch`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    glu.check(gate, up)
    fp8.check_scale(scale, "gate", gate)
    return fp8.collect(_op(gate, up, scale, transpose, impl), scale, transpose)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """The backward pass of `swiglu_fp8`, which is `swiglu`'s: dgate and dup for `grad` (T, F) in the dtype of gate."""
    glu.check(gate, up)
    checks.alike("grad", grad, "gate", gate)
    result: tuple[Tensor, Tensor] = glu.backward_op(grad, gate, up, impl)
    return result
