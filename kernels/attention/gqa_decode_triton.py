# mypy: disable-error-code="no-untyped-def"
"""Decode attention in Triton: the twin of the CUDA kernel for other dtypes and GPUs. Two launches: parts, then their
sum.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels import launch
from mify.kernels.ahead import LAUNCH, Case

BLOCK_KEYS = 64


@triton.jit
def attend(out, total, top, q, k, v, seen, scale_log2):
    """The sums `out` (M, D) and `total` (M,) over earlier keys and their maximum `top` (base 2), with a block more."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(seen, scores, float("-inf"))
    now = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet keeps -inf, and exp2(-inf - -inf) would be NaN.
    base = tl.where(now == float("-inf"), 0.0, now)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    out = out * shrink[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee")
    return out, total, now


@triton.jit
def _part_kernel(
    q_ptr,  # (B, Hq, D)
    k_ptr,  # (pages, page_size, Hkv, D)
    v_ptr,  # likewise
    lengths_ptr,  # (B,)
    table_ptr,  # (B, columns)
    k_scale_ptr,  # (Hkv,)
    v_scale_ptr,  # (Hkv,)
    rows_ptr,  # (B, Hq, splits, D) fp32
    statistics_ptr,  # (B, Hq, splits, 2) fp32: maximum (base 2), sum
    q_batch,
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
    num_splits,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr,
    SCALED: tl.constexpr,
):
    pair = tl.program_id(0)
    split = tl.program_id(1)
    batch = pair // KV_HEADS
    head = pair % KV_HEADS
    length = tl.load(lengths_ptr + batch)
    good = (length >= 0) & (length <= capacity)
    length = tl.where(good, length, 0)
    units = tl.cdiv(length, BLOCK_N)
    keys_a_split = tl.cdiv(units, num_splits) * BLOCK_N
    begin = split * keys_a_split
    end = tl.minimum(begin + keys_a_split, length)

    in_group = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, D)
    heads = head * GROUP + in_group
    q_at = batch.to(tl.int64) * q_batch + heads.to(tl.int64)[:, None] * q_head + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=in_group[:, None] < GROUP, other=0.0)
    if SCALED:
        scale_log2 = scale_log2 * tl.load(k_scale_ptr + head)

    top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    out = tl.zeros((BLOCK_G, D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < end
        if PAGED:
            page = tl.load(table_ptr + batch.to(tl.int64) * table_row + keys // PAGE_SIZE, mask=inside, other=0)
            slot = keys % PAGE_SIZE
            known = (page >= 0) & (page < num_pages)
            good = good & (tl.sum((inside & ~known).to(tl.int32), 0) == 0)
            inside = inside & known
        else:
            page = tl.zeros((BLOCK_N,), tl.int32) + batch
            slot = keys
        # Both addresses before both loads: one after the other they take 156 registers, not 126 (Triton 3.9, bf16).
        k_at = page.to(tl.int64) * k_page + slot.to(tl.int64) * k_slot + head.to(tl.int64) * k_head
        v_at = page.to(tl.int64) * v_page + slot.to(tl.int64) * v_slot + head.to(tl.int64) * v_head
        k = tl.load(k_ptr + k_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0).to(q.dtype)
        v = tl.load(v_ptr + v_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0).to(q.dtype)
        out, total, top = attend(out, total, top, q, k, v, inside[None, :], scale_log2)
    total = tl.where(good, total, float("nan"))
    if SCALED:
        out = out * tl.load(v_scale_ptr + head)
    row = (batch.to(tl.int64) * KV_HEADS * GROUP + heads) * num_splits + split
    mask = in_group < GROUP
    tl.store(rows_ptr + row[:, None] * D + dims[None, :], out, mask=mask[:, None])
    tl.store(statistics_ptr + row * 2, top, mask=mask)
    tl.store(statistics_ptr + row * 2 + 1, total, mask=mask)


@triton.jit
def _sum_kernel(
    rows_ptr,  # (B * Hq, splits, D) fp32
    statistics_ptr,  # (B * Hq, splits, 2) fp32
    out_ptr,  # (B * Hq, D)
    num_splits,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, D)
    at = row * num_splits + splits
    mask = splits < num_splits
    top = tl.load(statistics_ptr + at * 2, mask=mask, other=float("-inf"))
    total = tl.load(statistics_ptr + at * 2 + 1, mask=mask, other=0.0)
    highest = tl.max(top, 0)
    weights = tl.exp2(top - tl.where(highest == float("-inf"), 0.0, highest))
    parts = tl.load(rows_ptr + at[:, None] * D + dims[None, :], mask=mask[:, None], other=0.0)
    # The sums come first: one that is NaN says that the sequence's length or a page of it cannot be.
    whole = tl.sum(weights * total, 0) + 0.0 * tl.sum(total, 0)
    out = tl.sum(parts * weights[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    tl.store(out_ptr + row * D + dims, out.to(out_ptr.dtype.element_ty))


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    num_splits: int,
) -> Tensor:
    """As `gqa_decode.gqa_decode`, arguments checked there."""
    from .gqa_decode import choose_splits

    batch, heads, dim = q.shape
    pages, page_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    columns = 1 if page_table is None else page_table.shape[1]
    if num_splits == 0:
        num_splits = choose_splits(batch, kv_heads, page_size * columns, launch.processors(q))
    q = launch.dense(q)
    scaled = k_scale is not None or v_scale is not None
    ones = torch.ones(kv_heads, dtype=torch.float32, device=q.device) if scaled else lengths
    rows = torch.empty((batch, heads, num_splits, dim), dtype=torch.float32, device=q.device)
    statistics = torch.empty((batch, heads, num_splits, 2), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, heads, dim), dtype=q.dtype, device=q.device)
    _part_kernel[(batch * kv_heads, num_splits)](
        q,
        k_cache,
        v_cache,
        lengths.contiguous(),
        lengths if page_table is None else page_table.contiguous(),
        ones if k_scale is None else k_scale.contiguous(),
        ones if v_scale is None else v_scale.contiguous(),
        rows,
        statistics,
        q.stride(0),
        q.stride(1),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        columns,
        pages,
        page_size * columns,
        num_splits,
        scale * math.log2(math.e),
        KV_HEADS=kv_heads,
        GROUP=group,
        # A cache without pages may have any size, and each would be compiled for.
        PAGE_SIZE=1 if page_table is None else page_size,
        D=dim,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_N=BLOCK_KEYS,
        PAGED=page_table is not None,
        SCALED=scaled,
        num_warps=4,
        **LAUNCH,
    )
    _sum_kernel[(batch * heads,)](
        rows, statistics, out, num_splits, D=dim, BLOCK_S=triton.next_power_of_2(num_splits), num_warps=4, **LAUNCH
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
    strides = ("q_batch", "q_head", "k_page", "k_slot", "k_head", "v_page", "v_slot", "v_head")
    arguments = {
        "q_ptr": "*bf16",
        **dict.fromkeys(("k_ptr", "v_ptr"), f"*{cache}"),
        **dict.fromkeys(("lengths_ptr", "table_ptr"), "*i32"),
        **dict.fromkeys(("k_scale_ptr", "v_scale_ptr", "rows_ptr", "statistics_ptr"), "*fp32"),
        **dict.fromkeys(strides, "i32*16"),
        **dict.fromkeys(("table_row", "num_pages", "capacity", "num_splits"), "i32"),
        "scale_log2": "fp32",
    }
    constants = {
        "KV_HEADS": kv_heads, "GROUP": group, "PAGE_SIZE": 64, "D": dim, "BLOCK_G": 16,
        "BLOCK_N": BLOCK_KEYS, "PAGED": True, "SCALED": cache != "bf16",
    }  # fmt: skip
    name = f"gqa_decode {kv_heads * group}/{kv_heads}/{dim} {cache}"
    return Case(name, _part_kernel, arguments, constants, num_warps=4, num_stages=3, uses_tensor_cores=True)
