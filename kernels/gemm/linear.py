"""Linear layers in FP8, differentiable, with what stands before them fused into the quantization of their input.

    fp8_linear         x → x Wᵀ                          quantizes x by itself (attention's output)
    fp8_norm_linears   x, residual → norm(x + residual) W₁ᵀ, …, and the sum         quantizes in the norm's epilogue
    fp8_swiglu_linear  gate, up → (silu(gate) · up) Wᵀ   quantizes in SwiGLU's epilogue

An input that several layers read is quantized once, in both layouts: one feeds the forward products, the other is all
that is kept of it for the weight gradients (1 byte a value where bf16 layers keep 2). In the backward pass a gradient
is quantized once in both layouts too, for dgrad and wgrad. The current recipe must know a tensor's largest value before
it quantizes, so there norm and SwiGLU write their result first.

Bytes that must move, and what fusing saves: `mify.kernels.cost.fp8_linear` and `fp8_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mify.kernels import checks
from mify.kernels.mlp.glu import swiglu
from mify.kernels.mlp.glu_fp8 import swiglu_backward, swiglu_fp8
from mify.kernels.norm.norm import add_rms_norm, rms_norm
from mify.kernels.norm.norm_fp8 import rms_norm_backward, rms_norm_fp8
from mify.kernels.quantize.fp8 import Fp8

from . import scaling
from .gemm import ALIGN, fp8_matmul
from .scaling import GRADIENT, INPUT, WEIGHT, Delayed, Kind

States = Sequence[Delayed | None]
Cache = dict[str, Fp8]
"""A layer's quantized weight, kept from its first micro-batch on; its holder empties it when the weight changes."""


def _check(x: Tensor, weights: Sequence[Tensor], name: str = "x") -> None:
    checks.tensor(name, x, dims=2)
    checks.integer(name, x, torch.bfloat16, torch.float32)
    for index, weight in enumerate(weights):
        label = f"weights[{index}]"
        checks.tensor(label, weight, dims=2)
        checks.floating(label, weight)
        checks.same(label, weight, name, x, dtype=False)
        if weight.shape[1] != x.shape[1]:
            raise ValueError(f"{label} has shape {tuple(weight.shape)}; {name} has {x.shape[1]} features")
        if weight.shape[0] % ALIGN or weight.shape[1] % ALIGN:
            raise ValueError(
                f"{label} has shape {tuple(weight.shape)}; FP8 products take multiples of {ALIGN}: "
                "keep this layer in bf16, or choose another width"
            )


def _weight(weight: Tensor, kind: Kind, state: Delayed | None, cache: Cache | None, transpose: bool, impl: str) -> Fp8:
    if cache is not None and (known := cache.get("weight")) is not None and (known.data_t is not None or not transpose):
        return known
    quantized = scaling.quantize(weight, kind, state, WEIGHT, transpose=transpose or cache is not None, impl=impl)
    if cache is not None:
        cache["weight"] = quantized
    return quantized


def _forward(x: Fp8, weights: Sequence[Fp8], dtype: torch.dtype, impl: str) -> list[Tensor]:
    return [fp8_matmul(x.data, x.scale, w.data, w.scale, dtype=dtype, impl=impl) for w in weights]


def _saved(x: Fp8, weights: Sequence[Fp8]) -> list[Tensor]:
    """What the backward pass reads of the operands: the transposed layouts."""
    saved: list[Tensor] = []
    for operand in (x, *weights):
        assert operand.data_t is not None
        assert operand.scale_t is not None
        saved += [operand.data_t, operand.scale_t]
    return saved


def _backward(ctx: Any, grads: Sequence[Tensor | None], saved: Sequence[Tensor]) -> tuple[Tensor | None, list[Any]]:
    """The gradient of the quantized input, and those of the weights."""
    x_t, x_scale_t = saved[:2]
    dx: Tensor | None = None
    weight_grads: list[Tensor | None] = []
    for index, grad in enumerate(grads):
        if grad is None:
            weight_grads.append(None)
            continue
        weight_t, weight_scale_t = saved[2 + 2 * index : 4 + 2 * index]
        g = scaling.quantize(grad, ctx.kind, ctx.states[index], GRADIENT, transpose=True, impl=ctx.impl)
        assert g.data_t is not None
        assert g.scale_t is not None
        if ctx.needs_input:
            weight_t = weight_t[:, : grad.shape[1]]
            part = fp8_matmul(g.data, g.scale, weight_t, weight_scale_t, dtype=ctx.dtype, impl=ctx.impl)
            dx = part if dx is None else dx + part
        weight_grads.append(
            fp8_matmul(g.data_t, g.scale_t, x_t, x_scale_t, dtype=ctx.weight_dtypes[index], impl=ctx.impl)
            if ctx.needs_weights[index]
            else None
        )
    return dx, weight_grads


def _remember(ctx: Any, kind: Kind, states: States, impl: str, dtype: torch.dtype, weights: Sequence[Tensor]) -> None:
    ctx.kind, ctx.states, ctx.impl, ctx.dtype = kind, states, impl, dtype
    ctx.weight_dtypes = [weight.dtype for weight in weights]
    ctx.set_materialize_grads(False)


class _Linears(torch.autograd.Function):
    """Several layers on one input, quantized once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kind: Kind, states: Any, caches: Any, impl: str, keep: bool, *weights: Tensor
    ) -> Any:
        _remember(ctx, kind, states, impl, x.dtype, weights)
        quantized = scaling.quantize(x, kind, states[0], INPUT, transpose=keep, impl=impl)
        for state in states[1:]:
            scaling.note(quantized, state, INPUT)
        quantized_weights = [
            _weight(weight, kind, state, cache, keep, impl)
            for weight, state, cache in zip(weights, states, caches, strict=True)
        ]
        if keep:
            ctx.save_for_backward(*_saved(quantized, quantized_weights))
        return tuple(_forward(quantized, quantized_weights, x.dtype, impl))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.needs_input, ctx.needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        dx, weight_grads = _backward(ctx, grads, ctx.saved_tensors)
        return (dx, None, None, None, None, None, *weight_grads)


class _NormLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        kind: Kind,
        states: Any,
        caches: Any,
        impl: str,
        keep: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        _remember(ctx, kind, states, impl, x.dtype, weights)
        scale = states[0].scale[INPUT].clone() if kind == "delayed" else None
        normed = rms_norm_fp8(x, norm_weight, eps, residual=residual, scale=scale, transpose=keep, impl=impl)
        for state in states:
            scaling.note(normed.quantized, state, INPUT)
        quantized = [
            _weight(weight, kind, state, cache, keep, impl)
            for weight, state, cache in zip(weights, states, caches, strict=True)
        ]
        total = x if normed.total is None else normed.total
        if keep:
            ctx.save_for_backward(total, norm_weight, normed.inverse, *_saved(normed.quantized, quantized))
        ctx.with_residual = residual is not None
        outputs = _forward(normed.quantized, quantized, x.dtype, impl)
        return (*outputs, normed.total) if normed.total is not None else tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total, norm_weight, inverse, *saved = ctx.saved_tensors
        ctx.needs_input, ctx.needs_weights = True, ctx.needs_input_grad[9:]
        grad_total = grads[-1] if ctx.with_residual else None
        dy, weight_grads = _backward(ctx, grads[: len(ctx.states)], saved)
        dx, dnorm = grad_total, None
        if dy is not None:
            dx, dnorm = rms_norm_backward(dy, total, norm_weight, inverse, grad_total=grad_total, impl=ctx.impl)
        return (dx, dx if ctx.with_residual else None, dnorm, None, None, None, None, None, None, *weight_grads)


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, kind: Kind, state: Any, cache: Any, impl: str, keep: bool
    ) -> tuple[Tensor, ...]:
        _remember(ctx, kind, (state,), impl, gate.dtype, (weight,))
        scale = state.scale[INPUT].clone() if kind == "delayed" else None
        hidden = swiglu_fp8(gate, up, scale=scale, transpose=keep, impl=impl)
        scaling.note(hidden, state, INPUT)
        quantized_weight = _weight(weight, kind, state, cache, keep, impl)
        if keep:
            ctx.save_for_backward(gate, up, *_saved(hidden, (quantized_weight,)))
        return tuple(_forward(hidden, (quantized_weight,), gate.dtype, impl))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gate, up, *saved = ctx.saved_tensors
        ctx.needs_input, ctx.needs_weights = True, ctx.needs_input_grad[2:3]
        dh, (dw,) = _backward(ctx, grads, saved)
        assert dh is not None
        dgate, dup = swiglu_backward(dh, gate, up, impl=ctx.impl)
        return dgate, dup, dw, None, None, None, None, None


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    kind: Kind = "block",
    *,
    state: Delayed | None = None,
    cache: Cache | None = None,
    impl: str = "auto",
) -> Tensor:
    """x Wᵀ, (T, N) in the dtype of x; differentiable in x and weight.

    Args:
        x: (T, K) bfloat16 or float32; T is any number.
        weight: (N, K) floating, N and K multiples of 16.
        kind: the recipe: "block", "current" or "delayed".
        state: of this layer, for the delayed recipe.
        cache: of this layer; the weight is quantized once for as long as it is kept.
        impl: see `mify.kernels.dispatch`; the ops are "gemm", "quantize", "norm_fp8", "glu_fp8".

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _check(x, (weight,))
    _check_state(kind, (state,))
    return _apply(_Linears, x, kind, (state,), (cache,), impl, torch.is_grad_enabled(), weight)[0]


def fp8_norm_linears(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    kind: Kind = "block",
    *,
    residual: Tensor | None = None,
    states: States | None = None,
    caches: Sequence[Cache | None] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, ...]:
    """norm(x) W₁ᵀ, norm(x) W₂ᵀ, …; with a residual norm(x + residual), and the sum as the last result.

    Args:
        x, residual, norm_weight, eps: as in `add_rms_norm`; x bfloat16 or float32.
        weights: each (N, K), multiples of 16. Others as in `fp8_linear`; the input's scale is the first layer's.
    """
    _check(x, weights)
    states = (None,) * len(weights) if states is None else tuple(states)
    caches = (None,) * len(weights) if caches is None else tuple(caches)
    _check_state(kind, states)
    if _fuses(kind, states[0]):
        return _apply(
            _NormLinears, x, residual, norm_weight, eps, kind, states, caches, impl, torch.is_grad_enabled(), *weights
        )  # fmt: skip
    total: tuple[Tensor, ...] = ()
    if residual is None:
        y = rms_norm(x, norm_weight, eps, impl=impl)
    else:
        y, added = add_rms_norm(x, residual, norm_weight, eps, impl=impl)
        total = (added,)
    return (*_apply(_Linears, y, kind, states, caches, impl, torch.is_grad_enabled(), *weights), *total)


def fp8_swiglu_linear(
    gate: Tensor,
    up: Tensor,
    weight: Tensor,
    kind: Kind = "block",
    *,
    state: Delayed | None = None,
    cache: Cache | None = None,
    impl: str = "auto",
) -> Tensor:
    """(silu(gate) · up) Wᵀ; gate and up (T, K) bfloat16 or float32, others as in `fp8_linear`."""
    _check(gate, (weight,), "gate")
    _check_state(kind, (state,))
    if _fuses(kind, state):
        return _apply(_SwigluLinear, gate, up, weight, kind, state, cache, impl, torch.is_grad_enabled())[0]
    return fp8_linear(swiglu(gate, up, impl=impl), weight, kind, state=state, cache=cache, impl=impl)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return outputs


def _fuses(kind: Kind, state: Delayed | None) -> bool:
    """Whether the scale is known before the tensor is: not with current scaling, nor in a delayed one's first step."""
    return kind == "block" or (kind == "delayed" and state is not None and state.ready)


def _check_state(kind: Kind, states: States) -> None:
    if kind not in scaling.KINDS:
        raise ValueError(f"kind is {kind!r}; the recipes are {', '.join(scaling.KINDS)}")
    if kind == "delayed" and any(state is None for state in states):
        raise ValueError("state is None; delayed scaling keeps a state for every layer")
