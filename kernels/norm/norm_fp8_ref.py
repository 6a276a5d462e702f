"""RMSNorm that writes FP8, in plain torch: the norm, rounded to the dtype of x, then quantized."""

from __future__ import annotations

from torch import Tensor

from mify.kernels.quantize import quantize_ref
from mify.kernels.quantize.fp8 import Parts

from . import norm_ref


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, scale: Tensor | None, transpose: bool
) -> tuple[Parts, Tensor | None, Tensor]:
    """The parts of the norm, x + residual where there is one, and 1/rms, as in `norm_ref.forward`."""
    y, total, inverse = norm_ref.forward(x, residual, weight, eps)
    return quantize_ref.forward(y, scale, transpose), total, inverse.float()
