"""Rows from a plan in plain Python: the readable twin of `csrc/packing/rows.cpp`, equal to it in every bit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mify.data.plan import WindowPlan
from mify.data.rows import Loss, PackedRows
from mify.data.shards import TokenShards


def make_rows_ref(
    plan: WindowPlan,
    bins: Sequence[int],
    shards: TokenShards,
    *,
    context: int,
    pad_id: int,
    sentinels: Collection[int] = (),
    loss: Loss = "all",
    skip: Collection[int] = (),
) -> PackedRows:
    """See `mify.data.rows.make_rows`."""
    tokens = np.full((len(bins), context), pad_id, shards.dtype)
    loss_mask = np.zeros((len(bins), context), bool)
    starts: list[int] = []
    row_starts = [0]
    used = np.zeros(len(bins), np.int32)
    sentinel_ids = np.array(sorted(sentinels), np.int64)
    for row, number in enumerate(bins):
        place = 0
        for piece in range(int(plan.bin_starts[number]), int(plan.bin_starts[number + 1])):
            begin = place
            starts.append(begin)
            for span in range(int(plan.span_starts[piece]), int(plan.span_starts[piece + 1])):
                source, length = int(plan.span_source[span]), int(plan.span_length[span])
                if source < 0:
                    patch = plan.patches[~source : ~source + length]
                    tokens[row, place : place + length] = patch
                    loss_mask[row, place : place + length] = ~np.isin(patch, sentinel_ids)
                else:
                    shard = int(np.searchsorted(shards.shard_starts, source, side="right")) - 1
                    first = source - int(shards.shard_starts[shard])
                    tokens[row, place : place + length] = shards.tokens[shard][first : first + length]
                    loss_mask[row, place : place + length] = True
                place += length
            if loss == "middle" and plan.piece_mode[piece]:
                loss_mask[row, begin : begin + int(plan.piece_middle[piece])] = False
            loss_mask[row, begin] = False
            if int(shards.document_ids[plan.piece_document[piece]]) in skip:
                tokens[row, begin:place] = pad_id
                loss_mask[row, begin:place] = False
        used[row] = place
        if place < context:
            starts.append(place)
        row_starts.append(len(starts))
    return PackedRows(
        tokens,
        np.packbits(loss_mask, axis=1, bitorder="little"),
        np.array(starts, np.int32),
        np.array(row_starts, np.int64),
        used,
    )
