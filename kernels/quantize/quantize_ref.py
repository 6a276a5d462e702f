"""Quantization to E4M3 in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .fp8 import BLOCK, DTYPE, LARGEST, SMALLEST_AMAX, Parts


def forward(x: Tensor, scale: Tensor | None, transpose: bool) -> Parts:
    """The parts of x (T, d) floating: by blocks, or with `scale`, a delayed one."""
    wide = x.to(torch.float32)
    nothing = wide.new_empty(0)
    rows = F.pad(wide, (0, 0, 0, -x.shape[0] % BLOCK)) if transpose else wide
    if scale is None:
        data, scales = _blocks(wide)
        data_t, scales_t = _blocks(rows.t()) if transpose else (nothing.to(DTYPE), nothing)
        return data, scales, data_t, scales_t, nothing.clone()
    inverse = 1.0 / scale
    data_t = _rounded(rows.t() * inverse).contiguous() if transpose else nothing.to(DTYPE)
    return _rounded(wide * inverse).contiguous(), nothing, data_t, nothing.clone(), _largest(wide.reshape(1, -1))[0]


def _blocks(wide: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = wide.shape
    groups = -(-columns // BLOCK)
    blocks = F.pad(wide, (0, -columns % BLOCK)).reshape(rows, groups, BLOCK)
    largest = _largest(blocks).clamp(min=SMALLEST_AMAX)
    # torch would compute LARGEST / largest as a reciprocal and a product, rounded twice.
    factor = torch.full_like(largest, LARGEST) / largest
    data = _rounded(blocks * factor[..., None]).reshape(rows, groups * BLOCK)[:, :columns]
    return data.contiguous(), (largest / LARGEST).t().contiguous().t()


def _largest(wide: Tensor) -> Tensor:
    """max|x| along the last dimension, NaN left out; 0 where there is nothing."""
    if not wide.shape[-1]:
        return wide.new_zeros(wide.shape[:-1])
    return torch.where(wide.isnan(), 0.0, wide.abs()).amax(-1)


def _rounded(scaled: Tensor) -> Tensor:
    """To the nearest E4M3 value, ties to even, saturating; NaN stays NaN."""
    return scaled.clamp(-LARGEST, LARGEST).to(DTYPE)
