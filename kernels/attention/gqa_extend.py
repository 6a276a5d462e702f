"""Grouped-query attention of several new tokens a sequence against its cached keys and values.

What chunked prefill and the verification of guessed tokens ask for: sequence b has n_b new tokens, whose keys and
values lie in its pages already, behind what was there before. The i-th of them, the (lengths[b] − n_b + i)-th of
the sequence, sees itself and all before it:

    out_ih = Σ_j softmax_j(scale · q_ih·k_j) v_j     over j ≤ lengths[b] − n_b + i

Cache, page table and scales are those of `gqa_decode`, which is this with one token a sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mify.kernels import checks, dispatch, launch

from . import gqa_decode as decode
from . import gqa_extend_ref, gqa_paged_cpu

dispatch.register(
    "gqa_extend",
    dispatch.Backend("cpu", gqa_paged_cpu.refuses),
    dispatch.Backend("triton", decode.triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _forward(
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
    impl: str,
) -> Tensor:
    shape = {"longest": longest, "head_dim": q.shape[2], "cache_bytes": k_cache.element_size()}
    backend = dispatch.resolve("gqa_extend", impl, q, shape)
    if backend == "triton" and q.numel():
        from . import gqa_extend_triton

        with launch.on(q):
            return gqa_extend_triton.forward(
                q, k_cache, v_cache, cu_seqlens, lengths, page_table, longest, k_scale, v_scale, scale
            )
    arguments = (q, k_cache, v_cache, cu_seqlens, lengths, page_table, k_scale, v_scale, scale)
    if backend == "cpu":
        return gqa_paged_cpu.forward(*arguments)
    if q.device.type == "cpu":
        decode.check_values(k_cache, lengths, page_table)
    return gqa_extend_ref.forward(*arguments)


_op = torch.library.custom_op("mify::gqa_extend", mutates_args=())(_forward)


@_op.register_fake
def _(q, k_cache, v_cache, cu_seqlens, lengths, page_table, longest, k_scale, v_scale, scale, impl):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)


def gqa_extend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens: Tensor,
    lengths: Tensor,
    page_table: Tensor,
    longest: int,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention of new tokens over paged caches that hold their keys and values; not differentiable.

    Args:
        q: (T, Hq, D) floating, the new tokens of all sequences.
        k_cache, v_cache: (pages, page_size, Hkv, D); dtype of q or float8_e4m3fn, D contiguous.
        cu_seqlens: (B + 1,) int32: sequence b has the tokens cu[b] to cu[b + 1] of q; none is legal.
        lengths: (B,) int32: keys of each sequence, those of its new tokens included.
        page_table: (B, columns) int32 page ids. longest: no sequence has more new tokens.
        k_scale, v_scale, scale, impl: as in `gqa_decode`.

    Returns:
        (T, Hq, D), contiguous, dtype of q.

    Raises:
        TypeError, ValueError: an argument that cannot be meant, named. On a GPU values of `cu_seqlens`, `lengths` and
            `page_table` are not read back for a check: rows for which a length or a page is out of range are NaN.
    """
    checks.tensor("q", q, dims=3)
    checks.floating("q", q)
    decode.check_cache(q, k_cache, v_cache)
    decode.check_scales(q, k_cache, k_scale, v_scale)
    for name, x, dims in (("cu_seqlens", cu_seqlens, 1), ("lengths", lengths, 1), ("page_table", page_table, 2)):
        checks.tensor(name, x, dims=dims)
        checks.integer(name, x, torch.int32)
        checks.same(name, x, "q", q, dtype=False)
    sequences = lengths.shape[0]
    if cu_seqlens.shape[0] != sequences + 1:
        raise ValueError(f"cu_seqlens has {cu_seqlens.shape[0]} entries; {sequences} sequences ask for one more")
    if page_table.shape[0] != sequences:
        raise ValueError(f"page_table has {page_table.shape[0]} rows; there are {sequences} sequences")
    checks.whole_number("longest", longest)
    if longest < 1:
        raise ValueError(f"longest is {longest}; it must be positive")
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = checks.segment_bounds(cu_seqlens, q.shape[0], longest)
        for index, length in enumerate(lengths.tolist()):
            if length < bounds[index + 1] - bounds[index]:
                raise ValueError(
                    f"lengths[{index}] is {length}; sequence {index} has {bounds[index + 1] - bounds[index]} new tokens"
                )
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    run = _forward if dispatch.direct() else _op
    out: Tensor = run(
        q, k_cache, v_cache, cu_seqlens, lengths, page_table, longest, k_scale, v_scale, scale, impl
    )  # fmt: skip
    return out
