"""Attention of new tokens over cached keys and values in C++ for CPUs (csrc/attention/gqa_paged_cpu.hpp), float32.

It serves `gqa_decode` and `gqa_extend`, with a cache in pages or not, in float32 or E4M3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import cpu, dispatch


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    reason = cpu.refuses(device, dtype, shape)
    if not reason and (shape["head_dim"] % 16 or shape["head_dim"] > 256):
        return f"its head dimension must be a multiple of 16 up to 256, not {shape['head_dim']}"
    return reason


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    bounds: Tensor | None,
    lengths: Tensor,
    page_table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
) -> Tensor:
    """As `gqa_extend.gqa_extend`; bounds None: one token a sequence. Raises ValueError for a length or page that cannot
    be.
    """
    from mify._core import kernels

    (q,) = cpu.dense(q)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    pages, page_size, kv_heads, dim = k_cache.shape
    lengths = lengths.contiguous()
    bounds = None if bounds is None else bounds.contiguous()
    table, columns = (0, 0), 1
    if page_table is not None:
        page_table = page_table if page_table.stride(1) == 1 else page_table.contiguous()
        table, columns = (page_table.data_ptr(), page_table.stride(0)), page_table.shape[1]
    key_scale = None if k_scale is None else k_scale.contiguous()
    value_scale = None if v_scale is None else v_scale.contiguous()
    kernels.gqa_paged(
        cpu.heads(q), cpu.heads(out), _pool(k_cache), _pool(v_cache), k_cache.dtype != q.dtype,
        0 if bounds is None else bounds.data_ptr(), lengths.data_ptr(), table,
        (lengths.shape[0], pages, page_size, columns), (q.shape[1], kv_heads, dim),
        0 if key_scale is None else key_scale.data_ptr(), 0 if value_scale is None else value_scale.data_ptr(),
        scale, cpu.threads(),
    )  # fmt: skip
    return out


def _pool(cache: Tensor) -> tuple[int, int, int, int]:
    """(pointer, page stride, slot stride, head stride)."""
    return cache.data_ptr(), cache.stride(0), cache.stride(1), cache.stride(2)
