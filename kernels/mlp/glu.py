"""SwiGLU, silu(gate) · up with silu(g) = g·sigmoid(g) (Shazeer 2020, arXiv 2002.05202), computed in fp32."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mify.kernels import checks, cpu, dispatch

from . import glu_cpu, glu_ref

dispatch.register(
    "glu",
    dispatch.Backend("cpu", cpu.refuses),
    dispatch.Backend("triton", dispatch.triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _backend(impl: str, gate: Tensor) -> ModuleType:
    name = dispatch.resolve("glu", impl, gate, {"size": gate.shape[-1]})
    if name == "triton":
        from . import glu_triton

        return glu_triton
    return glu_cpu if name == "cpu" else glu_ref


def _forward(gate: Tensor, up: Tensor, impl: str) -> Tensor:
    return _backend(impl, gate).forward(gate, up)


_op = torch.library.custom_op("mify::swiglu", mutates_args=())(_forward)


@_op.register_fake
def _(gate, up, impl):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape)


@torch.library.custom_op("mify::swiglu_backward", mutates_args=())
def backward_op(grad: Tensor, gate: Tensor, up: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return _backend(impl, gate).backward(grad, gate, up)


@backward_op.register_fake
def _(grad, gate, up, impl):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    gate, up, ctx.impl = inputs
    ctx.save_for_backward(gate, up)


def _autograd(ctx, grad):  # type: ignore[no-untyped-def]
    return (*backward_op(grad, *ctx.saved_tensors, ctx.impl), None)


_op.register_autograd(_autograd, setup_context=_setup)


def swiglu(gate: Tensor, up: Tensor, *, impl: str = "auto") -> Tensor:
    """silu(gate) · up; differentiable in both.

    Args:
        gate, up: (T, F) floating, one dtype and device, any strides (two halves of one matrix will do).
        impl: see `mify.kernels.dispatch`.

    Returns:
        (T, F), contiguous, dtype of gate.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check(gate, up)
    run = _forward if dispatch.direct() else _op
    y: Tensor = run(gate, up, impl)
    return y


def check(gate: Tensor, up: Tensor) -> None:
    """Raises TypeError or ValueError, naming the argument, unless gate and up are alike."""
    checks.tensor("gate", gate, dims=2)
    checks.floating("gate", gate)
    checks.alike("up", up, "gate", gate)
