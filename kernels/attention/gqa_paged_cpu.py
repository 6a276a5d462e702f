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
    scales = [None if x is None else x.contiguous() for x in (k_scale, v_scale)]
    kernels.gqa_paged(
        cpu.heads(q), cpu.heads(out), (k_cache.data_ptr(), *k_cache.stride()[:3]),
        (v_cache.data_ptr(), *v_cache.stride()[:3]), k_cache.dtype != q.dtype,
        0 if bounds is None else bounds.data_ptr(), lengths.data_ptr(), table,
        (lengths.shape[0], pages, page_size, columns), (q.shape[1], kv_heads, dim),
        *(0 if x is None else x.data_ptr() for x in scales), scale, cpu.threads(),
    )  # fmt: skip
    return out
