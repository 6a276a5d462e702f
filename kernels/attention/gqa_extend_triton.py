# mypy: disable-error-code="no-untyped-def"
"""Attention of several new tokens a sequence over paged caches, in Triton.

A program takes as many tokens of one sequence as fill BLOCK_M rows with the query heads of one group, so every key is
read once for all of them. It goes through the pages up to the last key that its last token sees; keys before its first
token need no mask.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case

from .gqa_decode_triton import attend

BLOCK_M, BLOCK_N, WARPS, STAGES = 128, 64, 8, 3


@triton.jit
def _extend_kernel(
    q_ptr,  # (T, Hq, D)
    k_ptr,  # (pages, page_size, Hkv, D)
    v_ptr,  # likewise
    bounds_ptr,  # (B + 1,)
    lengths_ptr,  # (B,)
    table_ptr,  # (B, columns)
    k_scale_ptr,  # (Hkv,)
    v_scale_ptr,  # (Hkv,)
    out_ptr,  # (T, Hq, D), contiguous
    q_token,
    q_head,
    k_page,
    k_slot,
    k_head,
    v_page,
    v_slot,
    v_head,
    table_row,
    num_pages,
    capacity,
    scale_log2,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SCALED: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    sequence = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(bounds_ptr + sequence)
    count = tl.load(bounds_ptr + sequence + 1) - begin
    first = tl.program_id(0) * TOKENS
    if first >= count:
        return
    length = tl.load(lengths_ptr + sequence)
    good = (length >= count) & (length <= capacity)
    length = tl.where(good, length, count)

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, D)
    token = first + rows // GROUP
    used = (rows < TOKENS * GROUP) & (token < count)
    heads = head * GROUP + rows % GROUP
    at = (begin + token).to(tl.int64)
    q = tl.load(
        q_ptr + at[:, None] * q_token + heads.to(tl.int64)[:, None] * q_head + dims[None, :],
        mask=used[:, None],
        other=0.0,
    )
    if SCALED:
        scale_log2 = scale_log2 * tl.load(k_scale_ptr + head)
    places = length - count + token  # of the rows' tokens in their sequence
    end = tl.minimum(length - count + tl.minimum(first + TOKENS, count), tl.where(good, length, 0))

    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < end
        page = tl.load(table_ptr + sequence.to(tl.int64) * table_row + keys // PAGE_SIZE, mask=inside, other=0)
        known = (page >= 0) & (page < num_pages)
        good = good & (tl.sum((inside & ~known).to(tl.int32), 0) == 0)
        inside = inside & known
        slot = (keys % PAGE_SIZE).to(tl.int64)
        k_at = page.to(tl.int64) * k_page + slot * k_slot + head.to(tl.int64) * k_head
        v_at = page.to(tl.int64) * v_page + slot * v_slot + head.to(tl.int64) * v_head
        k = tl.load(k_ptr + k_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0).to(q.dtype)
        v = tl.load(v_ptr + v_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0).to(q.dtype)
        seen = inside[None, :] & (keys[None, :] <= places[:, None])
        out, total, top = attend(out, total, top, q, k, v, seen, scale_log2)
    # A length or a page that cannot be gives rows of NaN: reading it back for an error would wait for the GPU.
    out = out / tl.where(good, tl.where(total == 0.0, 1.0, total), float("nan"))[:, None]
    if SCALED:
        out = out * tl.load(v_scale_ptr + head)
    out_at = (at[:, None] * (KV_HEADS * GROUP) + heads[:, None]) * D + dims[None, :]
    tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=used[:, None])


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens: Tensor,
    lengths: Tensor,
    page_table: Tensor,
    longest: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
) -> Tensor:
    """As `gqa_extend.gqa_extend`, arguments checked there."""
    tokens, heads, dim = q.shape
    pages, page_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    q = q if q.stride(2) == 1 else q.contiguous()
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    if not tokens:
        return out
    scaled = k_scale is not None or v_scale is not None
    ones = torch.ones(kv_heads, dtype=torch.float32, device=q.device) if scaled else lengths
    block = max(BLOCK_M, triton.next_power_of_2(group))
    _extend_kernel[(triton.cdiv(longest, block // group), lengths.shape[0], kv_heads)](
        q,
        k_cache,
        v_cache,
        cu_seqlens.contiguous(),
        lengths.contiguous(),
        page_table.contiguous(),
        ones if k_scale is None else k_scale.contiguous(),
        ones if v_scale is None else v_scale.contiguous(),
        out,
        *q.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        page_table.shape[1],
        pages,
        page_size * page_table.shape[1],
        scale * math.log2(math.e),
        GROUP=group,
        KV_HEADS=kv_heads,
        PAGE_SIZE=page_size,
        D=dim,
        BLOCK_M=block,
        BLOCK_N=BLOCK_N if dim <= 128 else 32,
        SCALED=scaled,
        num_warps=WARPS,
        num_stages=STAGES if dim <= 128 else 2,
        **LAUNCH,
    )
    return out


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: the heads of three models, bf16 and FP8 cache."""
    return [
        _case(kv_heads, group, dim, cache)
        for kv_heads, group, dim in ((4, 5, 128), (8, 4, 128), (2, 2, 64))
        for cache in ("bf16", "fp8e4nv")
    ]


def _case(kv_heads: int, group: int, dim: int, cache: str) -> Case:
    strides = ("q_token", "q_head", "k_page", "k_slot", "k_head", "v_page", "v_slot", "v_head")
    arguments = {
        **dict.fromkeys(("q_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("k_ptr", "v_ptr"), f"*{cache}"),
        **dict.fromkeys(("bounds_ptr", "lengths_ptr", "table_ptr"), "*i32"),
        **dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "*fp32"),
        **dict.fromkeys(strides, "i32*16"),
        **dict.fromkeys(("table_row", "num_pages", "capacity"), "i32"),
        "scale_log2": "fp32",
    }
    constants = {
        "GROUP": group, "KV_HEADS": kv_heads, "PAGE_SIZE": 16, "D": dim, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N,
        "SCALED": cache != "bf16",
    }  # fmt: skip
    name = f"gqa_extend {kv_heads * group}/{kv_heads}/{dim} {cache}"
    return Case(
        name, _extend_kernel, arguments, constants, num_warps=WARPS, num_stages=STAGES, uses_tensor_cores=True
    )  # fmt: skip
