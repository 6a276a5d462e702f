"""Grouped-query attention by the flash attention inside torch, through `torch.nn.attention.varlen` (torch 2.10 on)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mify.kernels import dispatch

from . import gqa_libraries


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    reason = gqa_libraries.refuses_common(device, dtype, shape, capability=(8, 0), most=256)
    if not reason and shape["deterministic"]:
        return "its backward pass is deterministic only under torch.use_deterministic_algorithms"
    return reason


def load() -> Callable[..., Any]:
    """The public function."""
    from torch.nn.attention.varlen import varlen_attn

    function: Callable[..., Any] = varlen_attn
    return function


def attention(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: gqa_libraries.Documents, causal: bool,
    window: int, scale: float, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See `gqa_libraries`."""
    known = inspect.signature(function).parameters
    longest, bounds = documents.longest, documents.cu_seqlens
    if "window_size" not in known:
        # torch 2.10: no window, no scale.
        if window or abs(scale * q.shape[2] ** 0.5 - 1) > 1e-9:
            raise ValueError("torch.nn.attention.varlen takes a window and a scale from torch 2.11 on")
        plain: Tensor = function(q, k, v, bounds, bounds, longest, longest, is_causal=causal)
        return plain
    # Where heads may differ has an argument since 2.12; before, they simply may.
    more = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in known else {}
    out: Tensor = function(
        q, k, v, bounds, bounds, longest, longest,
        scale=scale, window_size=gqa_libraries.flash_window(causal, window), **more,
    )  # fmt: skip
    return out
