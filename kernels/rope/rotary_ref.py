"""Rotary positions in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, D) turned by angles whose cos and sin are (T, D/2): pairs are (i, i + D/2), as in Llama."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].to(cos.dtype), x[..., half:].to(cos.dtype)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
