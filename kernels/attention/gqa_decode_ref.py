"""Decode attention in plain torch: the pages are gathered, the rest is softmax(q kᵀ) v."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
) -> Tensor:
    """As `gqa_decode.gqa_decode`; computes in fp32 (fp64 for fp64), with the weights rounded to the dtype of q."""
    batch, heads, dim = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    page_size = k_cache.shape[1]
    capacity = page_size * (1 if page_table is None else page_table.shape[1])
    shortest, longest = 0, capacity
    if q.device.type == "cpu" and batch:
        # Where the lengths can be read for nothing, what no sequence uses is not gathered: nearly all of a long
        # context's table, at 80 ms a layer for 32 sequences of SmolLM2-135M.
        counts: list[int] = lengths.tolist()
        shortest, longest = (min(max(n, 0), capacity) for n in (min(counts), max(counts)))
        if page_table is not None:
            page_table = page_table[:, : -(-longest // page_size)]
    k, k_good = (x[:, :longest] for x in _keys(k_cache, page_table, k_scale, q.dtype))
    v = _keys(v_cache, page_table, v_scale, q.dtype)[0][:, :longest]
    kv_heads = k_cache.shape[2]
    used = torch.arange(longest, device=q.device)[None, :] < lengths[:, None]
    if shortest < longest:
        # What lies behind a sequence's end may be anything, NaN included, and NaN · 0 is NaN.
        v = v.masked_fill(~used[:, :, None, None], 0)
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("bhgd,bshd->bhgs", grouped, k).to(wide) * scale
    scores = scores.masked_fill(~used[:, None, None, :], float("-inf"))
    weights = torch.softmax(scores, dim=-1).masked_fill((lengths == 0)[:, None, None, None], 0).to(q.dtype)
    out = torch.einsum("bhgs,bshd->bhgd", weights, v).reshape(batch, heads, dim)
    bad = (lengths < 0) | (lengths > capacity) | (used & ~k_good).any(1)
    return out.masked_fill(bad[:, None, None], float("nan"))


def _keys(cache: Tensor, page_table: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(B, S, Hkv, D) of a cache in `dtype`, and (B, S) bool: the page exists."""
    good = torch.ones(cache.shape[:2], dtype=torch.bool, device=cache.device)
    if page_table is not None:
        exists = (page_table >= 0) & (page_table < cache.shape[0])
        pages = cache[page_table.clamp(0, max(cache.shape[0] - 1, 0)).long()]
        good = exists.repeat_interleave(cache.shape[1], dim=1)
        cache = pages.flatten(1, 2)
    if scale is not None:
        return (cache.to(torch.float32) * scale[:, None]).to(dtype), good
    return cache.to(dtype), good
