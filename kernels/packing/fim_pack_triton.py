# mypy: disable-error-code="no-untyped-def"
"""The gather-and-patch pass in Triton: a program makes BLOCK tokens of one row.

As in csrc/packing/fim_pack_kernel.cuh a token's segment and span are searched in its row's tables by steps that are the
same for the whole block. Where a label's token lies is searched again rather than passed between threads: the tables
and the token are in L1 by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import on
from mify.kernels.search_triton import find

from .fim_pack_ref import Batch, Spans, outputs

# At 8 warps the gather of uint32 tokens spills 8 bytes a thread, at 16 nothing (48 registers).
BLOCK, NUM_WARPS = 1024, 16


@triton.jit
def _range(rows_ptr, row, size):
    """The first entry of a row and how many it has, whatever the table says."""
    first = tl.minimum(tl.maximum(tl.load(rows_ptr + row), 0), size)
    last = tl.minimum(tl.load(rows_ptr + row + 1), size)
    return first, tl.maximum(last - first, 0)


@triton.jit
def _write_bounds(starts_ptr, rows_ptr, cu_ptr, row, tile, first, count, segments, rows, context, cu_length, BLOCK):
    """A row's first program writes where its segments start; all together what is left of the fixed length."""
    lane = tl.arange(0, BLOCK).to(tl.int64)
    if tile == 0:
        done = tl.zeros_like(count)
        while done < count:
            to = first + done + lane
            inside = (done + lane < count) & (to < cu_length)
            start = tl.load(starts_ptr + to, mask=inside, other=0)
            tl.store(cu_ptr + to, (row * context + start).to(tl.int32), mask=inside)
            done += BLOCK
    written = tl.minimum(tl.maximum(tl.load(rows_ptr + rows), 0), segments)
    to = written + tl.program_id(0).to(tl.int64) * BLOCK
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    while to < cu_length:
        end = (tl.zeros_like(lane) + rows) * context
        tl.store(cu_ptr + to + lane, end.to(tl.int32), mask=to + lane < cu_length)
        to += stride


@triton.jit
def _unpack_kernel(
    rows_ptr,  # (rows, context) u16 or u32
    bits_ptr,  # (rows, ceil(context / 8)) u8
    segment_starts_ptr,  # (segments,) i32
    segment_rows_ptr,  # (rows + 1,) i64
    tokens_ptr,  # (rows * context,) i64
    labels_ptr,  # likewise
    positions_ptr,  # likewise
    cu_ptr,  # (cu_length,) i32
    rows,
    context,
    segments,
    cu_length,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(context, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first, count = _range(segment_rows_ptr, row, segments)
    _write_bounds(
        segment_starts_ptr, segment_rows_ptr, cu_ptr, row, tile, first, count, segments, rows, context, cu_length, BLOCK
    )
    at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < context
    base = row * context + at
    _, start = find(segment_starts_ptr, first, count, at)
    token = tl.load(rows_ptr + base, mask=inside, other=0).to(tl.int64)
    tl.store(tokens_ptr + base, token, mask=inside)
    tl.store(positions_ptr + base, at - start, mask=inside)

    target = at + 1
    inside_target = target < context
    _, target_start = find(segment_starts_ptr, first, count, target)
    byte_row = row * tl.cdiv(context, 8)
    byte = tl.load(bits_ptr + byte_row + target // 8, mask=inside_target, other=0).to(tl.int32)
    loss = ((byte >> (target % 8).to(tl.int32)) & 1) != 0
    loss = loss & inside_target & (target > target_start)
    label = tl.load(rows_ptr + base + 1, mask=inside_target, other=0).to(tl.int64)
    tl.store(labels_ptr + base, tl.where(loss, label, -100), mask=inside)


@triton.jit
def _gather(
    buffer_ptr, patches_ptr, source_ptr, starts_ptr, first, count, at, inside, buffer_size, patches_size, pad_id
):
    """(the tokens at these places of a row, whether they may carry loss, whether they come from patches)"""
    span, start = find(starts_ptr, first, count, at)
    source = tl.load(source_ptr + first + span, mask=span < count, other=-9223372036854775808)
    padding = source == -9223372036854775808
    patched = (source < 0) & (padding == 0)
    place = tl.where(patched, -1 - source, source) + at - start
    known = inside & (place >= 0) & (padding == 0)
    from_buffer = known & (patched == 0) & (place < buffer_size)
    from_patches = known & patched & (place < patches_size)
    token = tl.load(buffer_ptr + place, mask=from_buffer, other=0).to(tl.int64)
    token += tl.load(patches_ptr + place, mask=from_patches, other=0).to(tl.int64)
    found = from_buffer | from_patches
    token = tl.where(found, token, tl.where(padding, pad_id, -1))
    return token, found, from_patches


@triton.jit
def _pack_kernel(
    buffer_ptr,  # (buffer_size,) u16 or u32
    patches_ptr,  # (patches_size,) likewise
    span_source_ptr,  # (spans,) i64
    span_starts_ptr,  # (spans,) i32
    span_rows_ptr,  # (rows + 1,) i64
    segment_starts_ptr,  # (segments,) i32
    segment_loss_ptr,  # (segments,) i32
    segment_rows_ptr,  # (rows + 1,) i64
    tokens_ptr,  # (rows * context,) i64
    labels_ptr,  # likewise
    positions_ptr,  # likewise
    cu_ptr,  # (cu_length,) i32
    rows,
    context,
    segments,
    spans,
    buffer_size,
    patches_size,
    cu_length,
    pad_id,
    sentinel0,
    sentinel1,
    sentinel2,
    sentinel3,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(context, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first, count = _range(segment_rows_ptr, row, segments)
    _write_bounds(
        segment_starts_ptr, segment_rows_ptr, cu_ptr, row, tile, first, count, segments, rows, context, cu_length, BLOCK
    )
    first_span, num_spans = _range(span_rows_ptr, row, spans)
    at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < context
    base = row * context + at
    _, start = find(segment_starts_ptr, first, count, at)
    token, _, _ = _gather(
        buffer_ptr, patches_ptr, span_source_ptr, span_starts_ptr, first_span, num_spans, at, inside, buffer_size,
        patches_size, pad_id,
    )  # fmt: skip
    tl.store(tokens_ptr + base, token, mask=inside)
    tl.store(positions_ptr + base, at - start, mask=inside)

    target = at + 1
    inside_target = target < context
    segment, target_start = find(segment_starts_ptr, first, count, target)
    label, found, patched = _gather(
        buffer_ptr, patches_ptr, span_source_ptr, span_starts_ptr, first_span, num_spans, target, inside_target,
        buffer_size, patches_size, pad_id,
    )  # fmt: skip
    loss_from = tl.load(segment_loss_ptr + first + segment, mask=segment < count, other=2147483647)
    loss = found & inside_target & (target > target_start) & (target >= loss_from)
    is_sentinel = (label == sentinel0) | (label == sentinel1) | (label == sentinel2) | (label == sentinel3)
    loss = loss & ((patched & is_sentinel) == 0)
    tl.store(labels_ptr + base, tl.where(loss, label, -100), mask=inside)


def unpack_rows(rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int) -> Batch:
    """As `fim_pack_ref.unpack_rows`."""
    num_rows, context = rows.shape
    batch = outputs(rows, rows.numel(), cu_length)
    with on(rows):
        _unpack_kernel[(num_rows * triton.cdiv(context, BLOCK),)](
            rows, loss_bits, segment_starts, segment_rows, *batch, num_rows, context, segment_starts.numel(), cu_length,
            BLOCK=BLOCK, num_warps=NUM_WARPS, **LAUNCH,
        )  # fmt: skip
    return batch


def pack_spans(spans: Spans, context: int, pad_id: int, sentinels: Sequence[int], cu_length: int) -> Batch:
    """As `fim_pack_ref.pack_spans`."""
    buffer, patches, num_rows = spans.buffer, spans.patches, spans.num_rows
    batch = outputs(buffer, num_rows * context, cu_length)
    if not patches.numel():
        spans = spans._replace(patches=buffer[:1])  # an empty tensor has no address; no span leads into it
    four = [*sentinels, -1, -1, -1, -1][:4]
    with on(buffer):
        _pack_kernel[(num_rows * triton.cdiv(context, BLOCK),)](
            *spans, *batch, num_rows, context, spans.segment_starts.numel(), spans.span_starts.numel(),
            buffer.numel(), patches.numel(), cu_length, pad_id, *four, BLOCK=BLOCK, num_warps=NUM_WARPS, **LAUNCH,
        )  # fmt: skip
    return batch


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: uint16 tokens at a context of a multiple of 16."""
    tables = {"segment_starts_ptr": "*i32", "segment_rows_ptr": "*i64"}
    results = {"tokens_ptr": "*i64", "labels_ptr": "*i64", "positions_ptr": "*i64", "cu_ptr": "*i32"}
    sizes = {"rows": "i32", "context": "i32*16", "segments": "i32", "cu_length": "i32"}
    spans = {"span_source_ptr": "*i64", "span_starts_ptr": "*i32", "span_rows_ptr": "*i64", "segment_loss_ptr": "*i32"}
    more = {"spans": "i32", "buffer_size": "i64", "patches_size": "i32", "pad_id": "i32"}
    more |= {f"sentinel{i}": "i32" for i in range(4)}
    found = []
    for name, unsigned in (("uint16", "*u16"), ("uint32", "*u32")):
        rows = {"rows_ptr": unsigned, "bits_ptr": "*u8"}
        buffers = {"buffer_ptr": unsigned, "patches_ptr": unsigned}
        constants = {"BLOCK": BLOCK}
        found += [
            Case(f"unpack rows {name}", _unpack_kernel, rows | tables | results | sizes, constants, NUM_WARPS),
            Case(
                f"pack spans {name}",
                _pack_kernel,
                buffers | tables | spans | results | sizes | more,
                constants,
                NUM_WARPS,
            ),
        ]
    return found
