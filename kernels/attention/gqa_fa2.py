"""Grouped-query attention by flash-attn 2 (`pip install flash-attn`), whose varlen function takes packed documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mify.kernels import dispatch

from . import gqa_libraries


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    return gqa_libraries.refuses_common(device, dtype, shape, capability=(8, 0), most=256)


def load() -> Callable[..., Any]:
    """The public function."""
    from flash_attn import flash_attn_varlen_func

    function: Callable[..., Any] = flash_attn_varlen_func
    return function


def attention(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: gqa_libraries.Documents, causal: bool,
    window: int, scale: float, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See `gqa_libraries`."""
    out: Tensor = gqa_libraries.flash_varlen(
        function, q, k, v, documents, causal, window, scale, deterministic, unlimited=-1
    )
    return out
