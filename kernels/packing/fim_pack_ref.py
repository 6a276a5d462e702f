"""The gather-and-patch pass in plain torch: the readable twin, equal to the others in every bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_LABEL = -100
PADDING = -(1 << 63)
"""The source of a span that is padding."""
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Tokens, labels, positions and cu_seqlens."""


class Spans(NamedTuple):
    """What `pack_spans` gathers from, and the plan's tables; see `fim_pack.pack_spans`."""

    buffer: Tensor
    patches: Tensor
    span_source: Tensor
    span_starts: Tensor
    span_rows: Tensor
    segment_starts: Tensor
    segment_loss: Tensor
    segment_rows: Tensor

    @property
    def num_rows(self) -> int:
        return self.segment_rows.numel() - 1


def outputs(like: Tensor, size: int, cu_length: int) -> Batch:
    """(tokens, labels, positions, cu_seqlens), not filled."""
    tokens, labels, positions = (torch.empty(size, dtype=torch.int64, device=like.device) for _ in range(3))
    return tokens, labels, positions, torch.empty(cu_length, dtype=torch.int32, device=like.device)


def unpack_rows(rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int) -> Batch:
    """As `fim_pack.unpack_rows`, arguments checked there."""
    num_rows, context = rows.shape
    starts = _flat(segment_starts, segment_rows, context)
    eight = torch.arange(8, device=rows.device, dtype=torch.uint8)
    bits = (loss_bits[:, :, None] >> eight & 1).reshape(num_rows, -1)[:, :context]
    return _batch(rows.reshape(-1).to(torch.int64), bits.reshape(-1) != 0, starts, cu_length)


def pack_spans(spans: Spans, context: int, pad_id: int, sentinels: Sequence[int], cu_length: int) -> Batch:
    """As `fim_pack.pack_spans`, arguments checked there."""
    buffer, patches, span_source, span_starts, span_rows, segment_starts, segment_loss, segment_rows = spans
    size = spans.num_rows * context
    at = torch.arange(size, device=buffer.device)
    begins = _flat(span_starts, span_rows, context)
    span = _part_of(at, begins)
    source = span_source[span]
    patched, padding = (source < 0) & (source != PADDING), source == PADDING
    place = torch.where(patched, ~source, source) + at - begins[span]
    sizes = torch.where(patched, patches.numel(), buffer.numel())
    beyond = ~padding & ((place < 0) | (place >= sizes))
    if buffer.device.type == "cpu" and bool(beyond.any()):
        raise ValueError(f"span {int(span[beyond.nonzero()[0, 0]])} leads beyond the buffer or the patches")
    both = torch.cat(
        [buffer.to(torch.int64), patches.to(torch.int64), torch.tensor([pad_id, -1], device=buffer.device)]
    )
    nowhere = buffer.numel() + patches.numel()
    place = torch.where(patched, place + buffer.numel(), place).masked_fill(padding, nowhere)
    tokens = both[place.masked_fill(beyond, nowhere + 1)]

    starts = _flat(segment_starts, segment_rows, context)
    segment = _part_of(at, starts)
    loss = at % context >= segment_loss[segment]
    loss &= ~padding & ~beyond
    for sentinel in sentinels:
        loss &= ~(patched & (tokens == sentinel))
    return _batch(tokens, loss, starts, cu_length)


def _flat(starts: Tensor, rows: Tensor, context: int) -> Tensor:
    """Starts counted from the first row's first token, int64."""
    lengths = rows.diff()
    row = torch.arange(lengths.numel(), device=rows.device).repeat_interleave(lengths)
    return starts[: row.numel()].to(torch.int64) + row * context


def _part_of(at: Tensor, starts: Tensor) -> Tensor:
    """Which of the parts that begin at `starts` each token lies in."""
    return torch.searchsorted(starts, at, right=True) - 1


def _batch(tokens: Tensor, loss: Tensor, starts: Tensor, cu_length: int) -> Batch:
    """Args: loss: (T,) the token is a target that carries loss."""
    size = tokens.numel()
    if starts.numel() >= cu_length:
        raise ValueError(f"{starts.numel()} segments do not fit in cu_seqlens of length {cu_length}")
    at = torch.arange(size, device=tokens.device)
    positions = at - starts[_part_of(at, starts)]
    labels = torch.full_like(tokens, IGNORE_LABEL)
    labels[:-1] = torch.where(loss[1:] & (positions[1:] > 0), tokens[1:], IGNORE_LABEL)
    cu_seqlens = torch.full((cu_length,), size, dtype=torch.int32, device=tokens.device)
    cu_seqlens[: starts.numel()] = starts.to(torch.int32)
    return tokens, labels, positions, cu_seqlens
