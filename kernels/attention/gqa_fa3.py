"""Grouped-query attention by flash-attn 3, the Hopper kernels of flash-attention's folder `hopper` (Shah et al. 2024,
arXiv 2407.08608).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mify.kernels import dispatch

from . import gqa_libraries


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    if device.kind == "cuda" and device.capability[0] != 9:
        return "it is for Hopper (compute capability 9.0)"
    return gqa_libraries.refuses_common(device, dtype, shape, capability=(9, 0), most=256)


def load() -> Callable[..., Any]:
    """The public function."""
    from flash_attn_interface import flash_attn_varlen_func

    function: Callable[..., Any] = flash_attn_varlen_func
    return function


def attention(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: gqa_libraries.Documents, causal: bool,
    window: int, scale: float, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See `gqa_libraries`."""
    out = gqa_libraries.flash_varlen(function, q, k, v, documents, causal, window, scale, deterministic, unlimited=-1)
    # Before August 2025 it returned the normalizers too.
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first
