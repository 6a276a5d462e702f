"""SwiGLU that writes FP8, in plain torch: SwiGLU, rounded to the dtype of gate, then quantized."""

from __future__ import annotations

from torch import Tensor

from mify.kernels.quantize import quantize_ref
from mify.kernels.quantize.fp8 import Parts

from . import glu_ref


def forward(gate: Tensor, up: Tensor, scale: Tensor | None, transpose: bool) -> Parts:
    """The parts of silu(gate) · up."""
    return quantize_ref.forward(glu_ref.forward(gate, up), scale, transpose)
