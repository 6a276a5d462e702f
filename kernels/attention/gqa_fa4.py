"""Grouped-query attention by flash-attn 4 (`pip install --pre flash-attn-4`): kernels in CuTe's Python for Hopper and
Blackwell, compiled when they are first called at a new shape of heads. Its interface is that of 4.0.0b36.
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
    # Blackwell's kernels have 128 at most, Hopper's 256.
    most = 256 if device.capability[0] == 9 else 128
    return gqa_libraries.refuses_common(device, dtype, shape, capability=(9, 0), most=most)


def load() -> Callable[..., Any]:
    """The public function."""
    from flash_attn.cute import flash_attn_varlen_func

    function: Callable[..., Any] = flash_attn_varlen_func
    return function


def attention(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: gqa_libraries.Documents, causal: bool,
    window: int, scale: float, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See `gqa_libraries`."""
    out: Tensor = gqa_libraries.flash_varlen(
        function, q, k, v, documents, causal, window, scale, deterministic, unlimited=None
    )[0]
    return out
