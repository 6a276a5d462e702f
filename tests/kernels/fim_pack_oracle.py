"""The gather-and-patch pass said plainly, one token after the other, and random inputs for it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -(1 << 63)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Inputs:
    """Arguments of `pack_spans`, the rows that they come to, and the batch that both must become."""

    spans: tuple[Tensor, ...]
    options: dict[str, object]
    rows: tuple[Tensor, Tensor, Tensor, Tensor]
    cu_length: int
    batch: Batch


def random_inputs(
    seed: int, context: int, num_rows: int, dtype: torch.dtype = torch.uint16, behind: int = 0, one_token: bool = False
) -> Inputs:
    """Args: behind: entries behind the tables' ends, which nobody is to look at. one_token: segments of one token."""
    source = random.Random(seed)
    most = 0xFFFF if dtype == torch.uint16 else 0xFFFFFFFF
    buffer = [source.randint(0, most) for _ in range(source.randint(context, 3 * context))]
    sentinels, pad_id = [2, 3, 4], 1
    patches: list[int] = []
    span_source: list[int] = []
    span_starts: list[int] = []
    span_rows, segment_rows = [0], [0]
    segment_starts: list[int] = []
    segment_loss: list[int] = []
    rows: list[list[int]] = []
    losses: list[list[bool]] = []
    for _ in range(num_rows):
        row: list[int] = []
        loss: list[bool] = []
        while len(row) < context:
            begin = len(row)
            length = 1 if one_token else source.randint(1, min(context - begin, max(1, context // 3)))
            segment_starts.append(begin)
            kind = source.choice(["plain", "middle", "none", "padding"])
            first = {"plain": 1, "middle": source.randint(1, length), "none": length, "padding": length}[kind]
            segment_loss.append(context if kind in ("none", "padding") else begin + first)
            while len(row) < begin + length:
                size = source.randint(1, begin + length - len(row))
                span_starts.append(len(row))
                if kind == "padding":
                    span_source.append(PADDING)
                    ids, carries = [pad_id] * size, [False] * size
                elif source.random() < 0.4:
                    span_source.append(~len(patches))
                    ids = [source.choice([*sentinels, 7, source.randint(0, most)]) for _ in range(size)]
                    patches += ids
                    carries = [i not in sentinels for i in ids]
                else:
                    place = source.randint(0, len(buffer) - size)
                    span_source.append(place)
                    ids, carries = buffer[place : place + size], [True] * size
                loss += [
                    c and len(row) + i >= begin + first and kind in ("plain", "middle") for i, c in enumerate(carries)
                ]
                row += ids
        rows.append(row)
        losses.append(loss)
        span_rows.append(len(span_source))
        segment_rows.append(len(segment_starts))

    starts = [r * context + s for r in range(num_rows) for s in segment_starts[segment_rows[r] : segment_rows[r + 1]]]
    size = num_rows * context
    cu_length = len(starts) + 1 + source.randint(0, 5)
    tokens = [token for row in rows for token in row]
    flat_loss = [value for row in losses for value in row]
    positions, labels = [], []
    for at in range(size):
        start = max(s for s in starts if s <= at)
        positions.append(at - start)
        same = at + 1 < size and at + 1 not in starts
        labels.append(tokens[at + 1] if same and flat_loss[at + 1] else -100)
    bits = torch.zeros(num_rows, -(-context // 8), dtype=torch.uint8)
    for r, row_loss in enumerate(losses):
        for at, value in enumerate(row_loss):
            bits[r, at // 8] |= int(value) << at % 8
    junk = [-7] * behind
    segments = torch.tensor(segment_starts + junk, dtype=torch.int32)
    spans = (
        torch.tensor(buffer).to(dtype),
        torch.tensor(patches, dtype=torch.int64).to(dtype),
        torch.tensor(span_source + junk),
        torch.tensor(span_starts + junk, dtype=torch.int32),
        torch.tensor(span_rows),
        segments,
        torch.tensor(segment_loss + junk, dtype=torch.int32),
        torch.tensor(segment_rows),
    )
    return Inputs(
        spans,
        {"context": context, "pad_id": pad_id, "sentinels": sentinels, "cu_length": cu_length},
        (torch.tensor(tokens).to(dtype).reshape(num_rows, context), bits, segments, torch.tensor(segment_rows)),
        cu_length,
        (
            torch.tensor(tokens),
            torch.tensor(labels),
            torch.tensor(positions),
            torch.tensor(starts + [size] * (cu_length - len(starts)), dtype=torch.int32),
        ),
    )


def assert_same(actual: Batch, expected: Batch) -> None:
    for name, a, b in zip(("tokens", "labels", "positions", "cu_seqlens"), actual, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a.cpu(), b), name
