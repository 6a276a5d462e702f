"""What `mify bench kernels` and `mify bench data` time of the gather-and-patch pass: rows and spans like a window's."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from mify.bench.kernel_ops import Parts, Prepared, document_lengths
from mify.kernels.packing import fim_pack_cost
from mify.kernels.packing.fim_pack import pack_spans, unpack_rows

PAD, SENTINELS = 1, [2, 3, 4]
MEAN_SEGMENT = 1024
FIM_RATE = 0.25
REMERGED = 5
"""Tokens between two copies: a sentinel and what a cut inside a token makes of it."""


def fim_pack(device: str, num_rows: int, context: int) -> Parts:
    """Both ways to a batch, against plain torch: (R, C) uint16 rows, and spans of a buffer of as many tokens."""
    tables = _tables(num_rows, context)
    generator = torch.Generator().manual_seed(0)
    size = num_rows * context
    buffer = torch.randint(5, 1 << 16, (size,), generator=generator, dtype=torch.int32).to(torch.uint16)
    spans = [x.to(device) for x in (buffer, *tables)]
    segments, num_spans = tables[4].numel(), tables[1].numel()
    cu_length = segments + num_rows + 1
    options: dict[str, Any] = {"context": context, "pad_id": PAD, "sentinels": SENTINELS, "cu_length": cu_length}
    tokens = pack_spans(buffer, *tables, **options, impl="ref")[0]
    bits = torch.randint(0, 256, (num_rows, -(-context // 8)), generator=generator, dtype=torch.int32).to(torch.uint8)
    rows = [x.to(device) for x in (tokens.to(torch.uint16).reshape(num_rows, context), bits, tables[4], tables[6])]

    def whole(impl: str) -> tuple[Tensor, ...]:
        return unpack_rows(*rows, cu_length=cu_length, impl=impl)

    def gathered(impl: str) -> tuple[Tensor, ...]:
        return pack_spans(*spans, **options, impl=impl)

    parts: Parts = {
        "rows": Prepared(
            {"mify": lambda: whole("auto"), "torch": lambda: whole("ref")},
            fim_pack_cost.unpack_rows(size, segments), lambda: whole("ref"),
        ),
        "spans": Prepared(
            {"mify": lambda: gathered("auto"), "torch": lambda: gathered("ref")},
            fim_pack_cost.pack_spans(size, segments, num_spans), lambda: gathered("ref"),
        ),
    }  # fmt: skip
    return parts


def _tables(num_rows: int, context: int) -> list[Tensor]:
    """Patches and the six tables of `pack_spans`: whole documents, a quarter of them in three copies with patches."""
    source = random.Random(0)
    patches: list[int] = []
    sources: list[int] = []
    starts: list[int] = []
    segment_starts: list[int] = []
    span_rows, segment_rows = [0], [0]
    for _ in range(num_rows):
        at = 0
        for length in document_lengths(context, MEAN_SEGMENT, source.randrange(1 << 30)):
            segment_starts.append(at)
            permuted = source.random() < FIM_RATE and length > 8 * REMERGED
            for part in range(7 if permuted else 1):
                starts.append(at)
                if part % 2 == 0 and permuted:
                    size = REMERGED + ((length - 4 * REMERGED) % 3 if part == 6 else 0)
                    sources.append(~len(patches))
                    patches += [source.choice(SENTINELS), *(source.randrange(5, 1 << 16) for _ in range(size - 1))]
                else:
                    size = (length - 4 * REMERGED) // 3 if permuted else length
                    sources.append(source.randrange(num_rows * context - size + 1))
                at += size
            at = segment_starts[-1] + length
        span_rows.append(len(sources))
        segment_rows.append(len(segment_starts))
    return [
        torch.tensor(patches, dtype=torch.int32).to(torch.uint16),
        torch.tensor(sources),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(span_rows),
        torch.tensor(segment_starts, dtype=torch.int32),
        torch.tensor([start + 1 for start in segment_starts], dtype=torch.int32),
        torch.tensor(segment_rows),
    ]
