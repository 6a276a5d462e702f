"""Where FP8 scales come from: the three recipes, and the state of the delayed one.

block    every 128 values along what is summed have their own scale, found as they are quantized.
current  one scale a tensor, s = max|x| / 448, found by reading the tensor once before it is quantized.
delayed  one scale a tensor, from the largest values of earlier steps, s = max(history) / 448 · 2^margin, so that the
         kernel that makes the tensor can quantize it at once. What outgrows it saturates (Micikevicius et al. 2022,
         arXiv 2209.05433, and Transformer Engine's recipe of that name).

Gradients are E4M3 too: block scales make E5M2's range unnecessary (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), and
per-tensor scales leave 2^17.8 between the largest and the smallest value, at one more bit of mantissa.

A layer's state holds three quantizers: what goes in, the weight, the gradient. Every quantization raises the step's
largest value; once a step, after all micro-batches, `update` appends those to the histories. So neither micro-batches
nor activations that are computed twice change anything, and ranks agree once their largest values were shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mify.kernels.quantize.fp8 import LARGEST, SMALLEST_AMAX, Fp8
from mify.kernels.quantize.quantize import quantize_fp8

Kind = Literal["block", "current", "delayed"]
KINDS: tuple[Kind, ...] = ("block", "current", "delayed")
INPUT, WEIGHT, GRADIENT = 0, 1, 2
DEFAULT_HISTORY = 1024


def compile_refuses(kind: str) -> str:
    """Why a recipe cannot run under torch.compile, or ""."""
    if kind == "delayed":
        return (
            "delayed scaling writes down each tensor's largest value in the forward and the backward pass, which "
            "torch.compile does not let a compiled backward do; block and current scaling keep no such state"
        )
    return ""


@dataclass(frozen=True)
class Delayed:
    """A layer's state with delayed scaling; the tensors are changed in place.

    Args:
        history: (3, H) fp32, the largest values of the last H steps, newest first; 0 where there was no step yet.
        scale: (3,) fp32, in use in this step.
        amax: (3,) fp32, the largest values of this step so far.
        ready: whether `scale` comes from a history. Where it does not (the first step), the tensor's own scale is used.
    """

    history: Tensor
    scale: Tensor
    amax: Tensor
    ready: bool

    @staticmethod
    def empty(history: int = DEFAULT_HISTORY, device: torch.device | str | None = None) -> Delayed:
        """A state before the first step."""
        if history < 1:
            raise ValueError(f"history is {history}; it must be at least 1")
        return Delayed(
            torch.zeros(3, history, device=device), torch.ones(3, device=device), torch.zeros(3, device=device), False
        )


def quantize(x: Tensor, kind: Kind, state: Delayed | None, slot: int, *, transpose: bool, impl: str = "auto") -> Fp8:
    """x (T, d) in FP8 by the recipe `kind`.

    Args:
        state: of the layer, for the delayed recipe; None quantizes as `current` does.
        slot: INPUT, WEIGHT or GRADIENT.
    """
    if kind == "block":
        return quantize_fp8(x, transpose=transpose, impl=impl)
    quantized = quantize_fp8(x, scale=scale_for(x, kind, state, slot), transpose=transpose, impl=impl)
    note(quantized, state, slot)
    return quantized


def scale_for(x: Tensor, kind: Kind, state: Delayed | None, slot: int) -> Tensor:
    """The () fp32 scale that x is quantized with."""
    if kind == "delayed" and state is not None and state.ready:
        # A copy: what is saved for the backward pass must not change when the step's update does.
        return state.scale[slot].clone()
    return current_scale(x)


def current_scale(x: Tensor) -> Tensor:
    """max|x| / 448 over the finite values of x, () fp32."""
    if not x.numel():
        return x.new_ones((), dtype=torch.float32)
    largest = torch.nan_to_num(x.detach().abs(), nan=0.0, posinf=0.0).amax().to(torch.float32)
    return largest.clamp(min=SMALLEST_AMAX) / LARGEST


def note(quantized: Fp8, state: Delayed | None, slot: int) -> None:
    """Raises the step's largest value in `state`."""
    if state is not None and quantized.amax is not None:
        torch.maximum(state.amax[slot], quantized.amax, out=state.amax[slot])


@torch.no_grad()
def update(states: Sequence[Delayed], margin: int = 0, gradient_factor: float = 1.0) -> None:
    """The end of a step: the step's largest values go into the histories, and scales follow from those.

    A largest value that is infinite counts as absent: one bad step must not spoil the scales of the next thousand.

    Args:
        states: of all layers, with one length of history. margin: binary orders of headroom.
        gradient_factor: what gradients are multiplied by on their way back (as many ranks as average them, say).
            Histories hold them without it, so that they serve any number of ranks.
    """
    for state in states:
        seen = torch.where(state.amax.isfinite(), state.amax, 0.0)
        seen[GRADIENT] /= gradient_factor
        state.history.copy_(torch.roll(state.history, 1, 1))
        state.history[:, 0] = seen
        state.amax.zero_()
    set_scales(states, margin, gradient_factor)


@torch.no_grad()
def set_scales(states: Sequence[Delayed], margin: int = 0, gradient_factor: float = 1.0) -> None:
    """Scales from histories, in place; 1 where there is no history. Arguments as in `update`."""
    for state in states:
        largest = state.history.amax(1)
        largest[GRADIENT] *= gradient_factor
        state.scale.copy_(torch.where(largest > 0, largest.clamp(min=SMALLEST_AMAX) / LARGEST * 2.0**margin, 1.0))


def ready(state: Delayed) -> bool:
    """Whether every quantizer has a history. Reads the device: for after a checkpoint was loaded."""
    return bool((state.history.amax(1) > 0).all())
