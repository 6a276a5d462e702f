"""A plan's bins as spans for the device: what to copy from token buffers that lie there, and what to put between.

Where the shards' tokens lie in device memory already, a batch needs no rows made on the host: its spans travel (a few
hundred bytes a row), and `mify.kernels.packing.fim_pack.pack_spans` gathers the tokens there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mify.data.plan import WindowPlan
from mify.data.rows import Loss
from mify.data.shards import TokenShards

if TYPE_CHECKING:
    import torch

    from mify.data.batch import PackedBatch

PADDING = -(1 << 63)
"""The source of a span that is padding (`mify.kernels.packing.fim_pack.PADDING`, which would import torch)."""


@dataclass(frozen=True, slots=True)
class PackedSpans:
    """R rows, each tiled by spans and by segments whose starts are counted from the row's first token."""

    span_source: NDArray[np.int64]
    """(S,) a token's number in the buffer, ~place in `patches`, or `PADDING`."""
    span_starts: NDArray[np.int32]
    """(S,)"""
    span_rows: NDArray[np.int64]
    """(R + 1,) first span of each row."""
    segment_starts: NDArray[np.int32]
    """(G,) as in `PackedRows`."""
    segment_loss: NDArray[np.int32]
    """(G,) from which token of its row on a segment carries loss; `context` where it does not."""
    segment_rows: NDArray[np.int64]
    """(R + 1,) first segment of each row."""
    patches: NDArray[Any]
    """(P,) in the shards' dtype."""

    def to_batch(
        self,
        buffer: torch.Tensor,
        *,
        context: int,
        pad_id: int,
        max_segments: int,
        sentinels: Collection[int] = (),
        sources: Sequence[str] = (),
    ) -> PackedBatch:
        """Gathers the rows from `buffer`, (N,) uint16 or uint32, on its device.

        Args: max_segments: most segments in a row, padding's included; cu_seqlens has R * max_segments + 1 entries.
        """
        import torch

        from mify.data.batch import PackedBatch
        from mify.kernels.packing.fim_pack import pack_spans

        def move(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(buffer.device)

        batch = pack_spans(
            buffer,
            move(self.patches),
            move(self.span_source),
            move(self.span_starts),
            move(self.span_rows),
            move(self.segment_starts),
            move(self.segment_loss),
            move(self.segment_rows),
            context=context,
            pad_id=pad_id,
            sentinels=sorted(sentinels),
            cu_length=(len(self.segment_rows) - 1) * max_segments + 1,
        )
        return PackedBatch(*batch, context, tuple(sources))


def make_spans(
    plan: WindowPlan,
    bins: Sequence[int] | NDArray[np.int64],
    shards: TokenShards,
    *,
    context: int,
    loss: Loss = "all",
    skip: Collection[int] = (),
    base: int = 0,
) -> PackedSpans:
    """The spans of some of a plan's bins. Arguments as in `make_rows`; the batch that comes of them is the same.

    Args: base: the number in the buffer of the shards' first token.
    """
    chosen = np.asarray(bins, np.int64)
    pieces, row_pieces = _entries(plan.bin_starts, chosen)
    spans, piece_spans = _entries(plan.span_starts, pieces)
    row_of_piece = np.repeat(np.arange(len(chosen)), np.diff(row_pieces))
    row_of_span = np.repeat(row_of_piece, np.diff(piece_spans))
    source, length = plan.span_source[spans], plan.span_length[spans].astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(length)])
    row_ends = ends[piece_spans][row_pieces]
    used = np.diff(row_ends)

    patched = np.flatnonzero(source < 0)
    patches, patch_starts = _entries_at(~source[patched], length[patched])
    span_source = source + base
    span_source[patched] = ~patch_starts[:-1]
    starts = ends[:-1] - row_ends[row_of_span]
    segment_starts = starts[piece_spans[:-1]]
    mode, middle = plan.piece_mode[pieces], plan.piece_middle[pieces]
    segment_loss = segment_starts + np.where((mode > 0) & (loss == "middle"), middle, 1)
    if skip:
        keys = shards.document_ids[plan.piece_document[pieces]]
        skipped = np.isin(keys, np.array(sorted(skip), np.uint64))
        segment_loss[skipped] = context
        span_source[np.repeat(skipped, np.diff(piece_spans))] = PADDING

    short = np.flatnonzero(used < context)
    pads = np.concatenate([[0], np.cumsum(used < context)])
    span_rows, segment_rows = piece_spans[row_pieces], row_pieces
    behind, after = span_rows[short + 1], segment_rows[short + 1]
    return PackedSpans(
        span_source=np.insert(span_source, behind, PADDING),
        span_starts=np.insert(starts, behind, used[short]).astype(np.int32),
        span_rows=span_rows + pads,
        segment_starts=np.insert(segment_starts, after, used[short]).astype(np.int32),
        segment_loss=np.insert(segment_loss, after, context).astype(np.int32),
        segment_rows=segment_rows + pads,
        patches=plan.patches[patches].astype(shards.dtype),
    )


def concatenate_spans(parts: Sequence[PackedSpans]) -> PackedSpans:
    """The rows of all parts, in order."""
    sources, span_rows, segment_rows = [], [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    patches = 0
    for part in parts:
        patched = (part.span_source < 0) & (part.span_source != PADDING)
        sources.append(np.where(patched, part.span_source - patches, part.span_source))
        span_rows.append(part.span_rows[1:] + span_rows[-1][-1])
        segment_rows.append(part.segment_rows[1:] + segment_rows[-1][-1])
        patches += len(part.patches)
    return PackedSpans(
        np.concatenate(sources),
        np.concatenate([part.span_starts for part in parts]),
        np.concatenate(span_rows),
        np.concatenate([part.segment_starts for part in parts]),
        np.concatenate([part.segment_loss for part in parts]),
        np.concatenate(segment_rows),
        np.concatenate([part.patches for part in parts]),
    )


def padding_spans(count: int, context: int, dtype: np.dtype[Any]) -> PackedSpans:
    """Rows of nothing but padding: they fill the last batch of a stream that ends."""
    one_each, zeros = np.arange(count + 1, dtype=np.int64), np.zeros(count, np.int32)
    loss = np.full(count, context, np.int32)
    return PackedSpans(np.full(count, PADDING), zeros, one_each, zeros, loss, one_each, np.zeros(0, dtype))


def _entries(starts: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The entries of some groups of a table, and where each group's begin among them."""
    return _entries_at(starts[groups], starts[groups + 1] - starts[groups])


def _entries_at(first: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    begins = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return np.arange(begins[-1]) + np.repeat(first - begins[:-1], count), begins
