"""RMSNorm in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """y (T, d) and, with a residual, x + residual, in the dtype of x; 1/rms (T, 1) in fp32 (fp64 for fp64)."""
    total = None if residual is None else x + residual
    wide = (x if total is None else total).to(torch.promote_types(x.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse * weight).to(x.dtype), total, inverse


def backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """dx in the dtype of x, with the gradient that the sum x + residual has besides; dweight, summed in fp32."""
    normal = x.to(inverse.dtype) * inverse
    wide = grad.to(inverse.dtype)
    scaled = wide * weight
    dx = inverse * (scaled - normal * (scaled * normal).mean(-1, keepdim=True))
    if grad_total is not None:
        dx = dx + grad_total
    return dx.to(x.dtype), (wide * normal).sum(0).to(weight.dtype)
