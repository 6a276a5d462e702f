# mypy: disable-error-code="no-untyped-def"
"""Grouped-query attention over packed documents in Triton (FlashAttention-2, Dao 2023, arXiv 2307.08691).

The tiles lie on the axis of all tokens, across documents: two int32 a token, where its document begins and ends, say
what a row may see. So a batch of short documents has no partly filled tile at every document's end, no table of tiles
and no launch that depends on the lengths. A tile goes through its keys in two loops: one masks, over the blocks at both
edges of what its rows see, and one does not, over the whole blocks between them.

Backward is one kernel over key tiles (dk and dv, all query heads of the group in one program, so nothing is added up
across programs) and one over query tiles (dq): the same bits every time. Where that is not asked for, the first kernel
adds its part of dq in fp32 as well, which saves two of seven products and the second launch.

Every kernel goes through its units, a tile of a head each, by steps of the number of programs. Launched with a program
for each unit it is an ordinary kernel; with as many as the GPU holds at once it is persistent, so that many short tiles
cost no launch of a block each.

Blocks come through tensor descriptors: on Hopper the tensor memory accelerator copies them, with 64-bit addresses and
zeros beyond the edges; elsewhere Triton turns them into pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mify.kernels.search_triton import find

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _edges_kernel(
    cu_ptr,  # (documents + 1,) int32
    start_ptr,  # (tokens,) int32: where the token's document begins
    end_ptr,  # (tokens,) int32: and ends
    tokens,
    documents,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # Of several that begin at one place the last: the others are empty.
    document, start = find(cu_ptr, 0, documents, token)
    inside = token < tokens
    tl.store(start_ptr + token, start.to(tl.int32), mask=inside)
    tl.store(end_ptr + token, tl.load(cu_ptr + document + 1), mask=inside)


@triton.jit
def _reach(
    row, inside, start_ptr, end_ptr, tokens, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr
):
    """For each row the half-open range of the other side: keys a query sees, or with KEYS queries that see a key."""
    low = tl.load(start_ptr + row, mask=inside, other=0)
    high = tl.load(end_ptr + row, mask=inside, other=0)
    if CAUSAL:
        if KEYS:
            low = row
        else:
            high = tl.minimum(high, row + 1)
    if WINDOW:
        # 64 bits, since row + window may pass 2³¹.
        low = tl.maximum(low, row.to(tl.int64) - window + 1).to(tl.int32)
        high = tl.minimum(high, row.to(tl.int64) + window).to(tl.int32)
    # A row beyond the tokens sees an empty range.
    return tl.where(inside, low, tokens), tl.where(inside, high, 0)


@triton.jit
def _runs(low, high, BLOCK: tl.constexpr):
    """Which blocks of BLOCK columns the rows of a tile see, from where the first begins.

    Returns begin, whole_begin, whole_end, end: blocks between whole_begin and whole_end are seen by every row and need
    no mask; the edges on both sides do. A tile with rows beyond the tokens masks throughout: their range begins at the
    end, and so does the whole part.
    """
    begin = tl.min(low, 0) // 4 * 4  # 4 fp32 numbers are 16 bytes, where rows of them may begin: see `_load_row`
    end = tl.max(high, 0)
    whole_begin = begin + tl.cdiv(tl.max(low, 0) - begin, BLOCK) * BLOCK
    whole_end = whole_begin + tl.maximum(tl.min(high, 0) - whole_begin, 0) // BLOCK * BLOCK
    return begin, whole_begin, whole_end, end


@triton.jit
def _blocks(begin, whole_begin, whole_end, end, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """How many blocks a loop has, and where its later ones go on after the first `left` of them.

    The two edges are one loop (MASKED), the whole part another: a body less to compile, and fewer registers held over.
    """
    if MASKED:
        left = tl.cdiv(tl.minimum(whole_begin, end) - begin, BLOCK)
        count = left + tl.cdiv(tl.maximum(end - whole_end, 0), BLOCK)
        return count, left, begin, whole_end
    else:
        return (whole_end - whole_begin) // BLOCK, 0, begin, whole_begin


@triton.jit
def _tile_of(unit, tiles):
    """(tile, head) of a unit. The later rows of a document see more keys: every other head goes through its tiles from
    the end, so that long and short tiles run side by side. (Not by an `if`: Triton 3.9 then loses the alignment of
    every pointer and pipelines nothing.)
    """
    head = unit // tiles
    tile = unit % tiles
    return tl.where(head % 2 == 1, tiles - 1 - tile, tile), head


@triton.jit
def _load(tensor, first, head, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK, BLOCK_D) rows of one head from token `first` on; zeros beyond the tokens and the head dimension."""
    return tensor.load([first, head, 0]).reshape(BLOCK, BLOCK_D)


@triton.jit
def _load_row(tensor, first, head, BLOCK: tl.constexpr):
    """(BLOCK,) numbers of one head from token `first` on, a multiple of 4; zeros beyond the tokens.

    By the copy engine, like the blocks: Triton 3.6 copies them one by one where they come through pointers, and spills
    ten times as much.
    """
    return tensor.load([head, first]).reshape(BLOCK)


@triton.jit
def _attend(
    acc, total, top, q, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale_log2,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    SPECIALIZED: tl.constexpr,
):  # fmt: skip
    count, left, left_at, right_at = _blocks(begin, whole_begin, whole_end, end, MASKED, BLOCK_N)
    for index in tl.range(0, count, warp_specialize=SPECIALIZED):
        first = tl.where(index < left, left_at + index * BLOCK_N, right_at + (index - left) * BLOCK_N)
        k = _load(k_tensor, first, kv_head, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            key = (first + tl.arange(0, BLOCK_N))[None, :]
            scores = tl.where((key >= low[:, None]) & (key < high[:, None]), scores, float("-inf"))
        now = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        # A row that has seen nothing yet keeps -inf, and exp2(-inf - -inf) would be NaN.
        base = tl.where(now == float("-inf"), 0.0, now) if MASKED else now
        weights = tl.exp2(scores * scale_log2 - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        v = _load(v_tensor, first, kv_head, BLOCK_N, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = now
    return acc, total, top


@triton.jit
def _forward_kernel(
    q_tensor,  # (tokens, HEADS, DIM), a tensor descriptor with blocks of (BLOCK_M, 1, BLOCK_D)
    k_tensor,  # (tokens, HEADS / GROUP, DIM), a descriptor with blocks of (BLOCK_N, 1, BLOCK_D)
    v_tensor,  # likewise
    out_ptr,  # (tokens, HEADS, DIM), dense
    lse_ptr,  # (HEADS, tokens) fp32
    start_ptr,  # (tokens,) int32: where the token's document begins
    end_ptr,  # (tokens,) int32: and ends
    tokens,
    window,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    SPECIALIZED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(tokens, BLOCK_M)
    for unit in tl.range(tl.program_id(0), tiles * HEADS, tl.num_programs(0)):
        tile, head = _tile_of(unit, tiles)
        first = tile * BLOCK_M
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tokens
        low, high = _reach(row, inside, start_ptr, end_ptr, tokens, window, CAUSAL, WINDOW, False)
        begin, whole_begin, whole_end, end = _runs(low, high, BLOCK_N)

        q = _load(q_tensor, first, head, BLOCK_M, BLOCK_D)
        kv_head = head // GROUP
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        acc, total, top = _attend(
            acc, total, top, q, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale_log2,
            BLOCK_D, BLOCK_N, True, PRECISION, SPECIALIZED,
        )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, q, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale_log2,
            BLOCK_D, BLOCK_N, False, PRECISION, SPECIALIZED,
        )  # fmt: skip
        column = tl.arange(0, BLOCK_D)
        at = out_ptr + (row.to(tl.int64) * HEADS + head)[:, None] * DIM + column[None, :]
        tl.store(at, (acc / total[:, None]).to(q.dtype), mask=inside[:, None] & (column < DIM)[None, :])
        tl.store(lse_ptr + head.to(tl.int64) * tokens + row, (top + tl.log2(total)) / _LOG2E, mask=inside)


@triton.jit
def _statistics_kernel(
    grad_ptr,  # (tokens, HEADS, DIM), dense
    out_ptr,  # likewise
    lse_ptr,  # (HEADS, tokens) fp32
    lse2_ptr,  # (HEADS, row) fp32: lse in base 2
    delta_ptr,  # (HEADS, row) fp32: the sum of grad · out of each row
    tokens,
    row,  # tokens and what makes a row a multiple of 16 bytes
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)[None, :]
    at = ((token * HEADS + head) * DIM)[:, None] + column
    mask = (token < tokens)[:, None] & (column < DIM)
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    inside = token < tokens
    lse = tl.load(lse_ptr + head.to(tl.int64) * tokens + token, mask=inside, other=0.0)
    at = head.to(tl.int64) * row + token
    tl.store(lse2_ptr + at, lse * _LOG2E, mask=inside)
    tl.store(delta_ptr + at, tl.sum(grad * out, 1), mask=inside)


@triton.jit
def _slopes_of_keys(
    dk, dv, k, v, low, high, q_tensor, grad_tensor, dq_sums, head, lse2_tensor, delta_tensor,
    begin, whole_begin, whole_end, end, tokens, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, ADD_DQ: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    count, left, left_at, right_at = _blocks(begin, whole_begin, whole_end, end, MASKED, BLOCK_M)
    for index in range(0, count):
        first = tl.where(index < left, left_at + index * BLOCK_M, right_at + (index - left) * BLOCK_M)
        query = first + tl.arange(0, BLOCK_M)
        q = _load(q_tensor, first, head, BLOCK_M, BLOCK_D)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        # lse and delta are read where they are needed, not before: 16 registers a thread decide about spilling here.
        lse2 = _load_row(lse2_tensor, first, head, BLOCK_M)
        weights = tl.exp2(scores * (scale * _LOG2E) - lse2[None, :])
        if MASKED:
            seen = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
            weights = tl.where(seen, weights, 0.0)
        grad = _load(grad_tensor, first, head, BLOCK_M, BLOCK_D)
        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
        slopes = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        delta = _load_row(delta_tensor, first, head, BLOCK_M)
        slopes = (weights * (slopes - delta[None, :])).to(q.dtype)
        dk = tl.dot(slopes, q, dk, input_precision=PRECISION)
        if ADD_DQ:
            part = tl.dot(tl.trans(slopes), k, input_precision=PRECISION) * scale
            if BULK:
                dq_sums.atomic_add([first, head, 0], part.reshape(BLOCK_M, 1, BLOCK_D))
            else:
                column = tl.arange(0, BLOCK_D)[None, :]
                at = (query.to(tl.int64) * HEADS + head)[:, None] * DIM + column
                tl.atomic_add(dq_sums + at, part, mask=(query < tokens)[:, None] & (column < DIM), sem="relaxed")
    return dk, dv


@triton.jit
def _key_kernel(
    q_tensor,  # (tokens, HEADS, DIM), a tensor descriptor with blocks of (BLOCK_M, 1, BLOCK_D)
    k_ptr,  # (tokens, HEADS / GROUP, DIM)
    v_ptr,  # likewise
    grad_tensor,  # (tokens, HEADS, DIM), a descriptor like q's
    lse2_tensor,  # (HEADS, tokens) fp32, a descriptor with blocks of (1, BLOCK_M)
    delta_tensor,  # likewise
    dq_sums,  # (tokens, HEADS, DIM) fp32, dense, zeros; with BULK a descriptor like q's; with ADD_DQ
    dk_ptr,  # (tokens, HEADS / GROUP, DIM), dense
    dv_ptr,  # likewise
    start_ptr,  # (tokens,) int32
    end_ptr,  # (tokens,) int32
    k_token,
    k_head,
    v_token,
    v_head,
    tokens,
    window,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    ADD_DQ: tl.constexpr,
    BULK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(tokens, BLOCK_N)
    for unit in tl.range(tl.program_id(0), tiles * (HEADS // GROUP), tl.num_programs(0)):
        tile, kv_head = _tile_of(unit, tiles)
        first = tile * BLOCK_N
        key = first + tl.arange(0, BLOCK_N)
        inside = key < tokens
        low, high = _reach(key, inside, start_ptr, end_ptr, tokens, window, CAUSAL, WINDOW, True)
        begin, whole_begin, whole_end, end = _runs(low, high, BLOCK_M)
        # By pointers, not descriptors: Triton keeps these in shared memory then; from a descriptor it would hold both
        # in registers, where dk and dv leave no room.
        column = tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (column < DIM)[None, :]
        token = key.to(tl.int64)[:, None]
        k = tl.load(k_ptr + kv_head.to(tl.int64) * k_head + token * k_token + column[None, :], mask=mask, other=0.0)
        v = tl.load(v_ptr + kv_head.to(tl.int64) * v_head + token * v_token + column[None, :], mask=mask, other=0.0)
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for member in range(0, GROUP):
            head = kv_head * GROUP + member
            dk, dv = _slopes_of_keys(
                dk, dv, k, v, low, high, q_tensor, grad_tensor, dq_sums, head, lse2_tensor, delta_tensor,
                begin, whole_begin, whole_end, end, tokens, scale,
                HEADS, DIM, BLOCK_D, BLOCK_M, True, PRECISION, ADD_DQ, BULK,
            )  # fmt: skip
            dk, dv = _slopes_of_keys(
                dk, dv, k, v, low, high, q_tensor, grad_tensor, dq_sums, head, lse2_tensor, delta_tensor,
                begin, whole_begin, whole_end, end, tokens, scale,
                HEADS, DIM, BLOCK_D, BLOCK_M, False, PRECISION, ADD_DQ, BULK,
            )  # fmt: skip
        at = (key.to(tl.int64) * (HEADS // GROUP) + kv_head)[:, None] * DIM + column[None, :]
        tl.store(dk_ptr + at, (dk * scale).to(k.dtype), mask=mask)
        tl.store(dv_ptr + at, dv.to(k.dtype), mask=mask)


@triton.jit
def _slopes_of_queries(
    dq, q, grad, lse2, delta, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    count, left, left_at, right_at = _blocks(begin, whole_begin, whole_end, end, MASKED, BLOCK_N)
    for index in range(0, count):
        first = tl.where(index < left, left_at + index * BLOCK_N, right_at + (index - left) * BLOCK_N)
        k = _load(k_tensor, first, kv_head, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = tl.exp2(scores * (scale * _LOG2E) - lse2[:, None])
        if MASKED:
            key = (first + tl.arange(0, BLOCK_N))[None, :]
            weights = tl.where((key >= low[:, None]) & (key < high[:, None]), weights, 0.0)
        v = _load(v_tensor, first, kv_head, BLOCK_N, BLOCK_D)
        slopes = weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(slopes.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _query_kernel(
    q_tensor,  # (tokens, HEADS, DIM), a tensor descriptor with blocks of (BLOCK_M, 1, BLOCK_D)
    k_tensor,  # (tokens, HEADS / GROUP, DIM), a descriptor with blocks of (BLOCK_N, 1, BLOCK_D)
    v_tensor,  # likewise
    grad_tensor,  # (tokens, HEADS, DIM), a descriptor like q's
    lse2_tensor,  # (HEADS, tokens) fp32, a descriptor with blocks of (1, BLOCK_M)
    delta_tensor,  # likewise
    dq_ptr,  # (tokens, HEADS, DIM), dense
    start_ptr,  # (tokens,) int32
    end_ptr,  # (tokens,) int32
    tokens,
    window,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(tokens, BLOCK_M)
    for unit in tl.range(tl.program_id(0), tiles * HEADS, tl.num_programs(0)):
        tile, head = _tile_of(unit, tiles)
        first = tile * BLOCK_M
        row = first + tl.arange(0, BLOCK_M)
        inside = row < tokens
        low, high = _reach(row, inside, start_ptr, end_ptr, tokens, window, CAUSAL, WINDOW, False)
        begin, whole_begin, whole_end, end = _runs(low, high, BLOCK_N)
        q = _load(q_tensor, first, head, BLOCK_M, BLOCK_D)
        grad = _load(grad_tensor, first, head, BLOCK_M, BLOCK_D)
        lse2 = _load_row(lse2_tensor, first, head, BLOCK_M)
        delta = _load_row(delta_tensor, first, head, BLOCK_M)
        kv_head = head // GROUP
        dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        dq = _slopes_of_queries(
            dq, q, grad, lse2, delta, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale,
            BLOCK_D, BLOCK_N, True, PRECISION,
        )  # fmt: skip
        dq = _slopes_of_queries(
            dq, q, grad, lse2, delta, low, high, k_tensor, v_tensor, kv_head, begin, whole_begin, whole_end, end, scale,
            BLOCK_D, BLOCK_N, False, PRECISION,
        )  # fmt: skip
        column = tl.arange(0, BLOCK_D)
        at = dq_ptr + (row.to(tl.int64) * HEADS + head)[:, None] * DIM + column[None, :]
        tl.store(at, (dq * scale).to(q.dtype), mask=inside[:, None] & (column < DIM)[None, :])
