"""RMSNorm in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y (T, d) in the dtype of x, and 1/rms (T, 1) in fp32 (fp64 for fp64)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse * weight).to(x.dtype), inverse


def backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """dx in the dtype of x, dweight in that of weight (summed over rows in fp32)."""
    normal = x.to(inverse.dtype) * inverse
    wide = grad.to(inverse.dtype)
    scaled = wide * weight
    dx = inverse * (scaled - normal * (scaled * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype), (wide * normal).sum(0).to(weight.dtype)
