"""Rotary positions in C++ for CPUs (csrc/fused/rows.hpp), float32."""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import cpu


def rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """As `rotary_ref.rotate`; `inverse` turns back."""
    from mify._core import kernels

    (x,) = cpu.dense(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    kernels.rotary(
        cpu.heads(x), y.data_ptr(), cos.data_ptr(), sin.data_ptr(), inverse,
        x.shape[0], x.shape[1], x.shape[2] // 2, cpu.threads(),
    )  # fmt: skip
    return y
