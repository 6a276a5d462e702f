"""What the trainer eats: one packed batch of tokens, labels, positions and segment boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

IGNORE_LABEL = -100
"""The label of a position that carries no loss."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of `context` tokens laid end to end (T = rows * context); segments never cross a row.

    Labels are already shifted: the position t is to predict `labels[t]`, which is `tokens[t + 1]` inside a segment and
    -100 at a segment's last token, on padding, and where the loss choice says no loss. Do not shift again.
    Padding at a row's end is a segment of its own: it carries the pad id, label -100, and positions from 0.
    """

    tokens: Tensor
    """(T,) int64."""
    labels: Tensor
    """(T,) int64, -100 = no loss."""
    positions: Tensor
    """(T,) int64, counted from 0 in every segment."""
    cu_seqlens: Tensor
    """(M,) int32: the segments' starts, then T; a fixed length M, padded by repeating T (zero-length segments)."""
    max_seqlen: int
    """The context: a constant upper bound of the segments' lengths, so that nothing recompiles."""
    sources: tuple[str, ...] = field(default=())
    """For reporting: the source that each row was taken from ((rows,) or empty)."""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.tokens.numel()

    @property
    def num_labels(self) -> int:
        """How many positions carry loss (synchronises a device)."""
        return int((self.labels != IGNORE_LABEL).sum())

    @property
    def num_units(self) -> int:
        """What the loss is a mean over: here labelled tokens; pairs or sequences where a batch is made of those."""
        return self.num_labels

    @property
    def num_rows(self) -> int:
        return self.tokens.numel() // self.max_seqlen

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        return PackedBatch(
            self.tokens.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
            self.cu_seqlens.to(device, non_blocking=non_blocking),
            self.max_seqlen,
            self.sources,
        )

    def pin_memory(self) -> PackedBatch:
        return PackedBatch(
            self.tokens.pin_memory(),
            self.labels.pin_memory(),
            self.positions.pin_memory(),
            self.cu_seqlens.pin_memory(),
            self.max_seqlen,
            self.sources,
        )

    def split(self, parts: int) -> list[PackedBatch]:
        """Micro-batches of equal numbers of rows, in order, for gradient accumulation. Call it on the CPU.

        Each part's cu_seqlens has the fixed length (M - 1) // parts + 1.

        Raises:
            ValueError: the rows do not divide by `parts`.
        """
        rows = self.num_rows
        if parts < 1 or rows % parts:
            raise ValueError(f"{rows} rows do not split into {parts} equal parts")
        size = rows // parts * self.max_seqlen
        length = (self.cu_seqlens.numel() - 1) // parts + 1
        out = []
        for part in range(parts):
            low, high = part * size, (part + 1) * size
            inside = self.cu_seqlens[(self.cu_seqlens >= low) & (self.cu_seqlens < high)] - low
            if inside.numel() >= length:
                raise ValueError(f"{inside.numel()} segments do not fit in cu_seqlens of length {length}")
            cu_seqlens = torch.full((length,), size, dtype=torch.int32)
            cu_seqlens[: inside.numel()] = inside
            rows_here = slice(part * (rows // parts), (part + 1) * (rows // parts))
            out.append(
                PackedBatch(
                    self.tokens[low:high],
                    self.labels[low:high],
                    self.positions[low:high],
                    cu_seqlens,
                    self.max_seqlen,
                    self.sources[rows_here],
                )
            )
        return out


@dataclass(frozen=True, slots=True)
class AnnotatedBatch(PackedBatch):
    """A batch whose loss needs more than labels."""

    notes: dict[str, Tensor] = field(default_factory=dict)
    """By name: (T, ...) of every token, or (rows, ...) of every row. `units`, (rows,) int64, must be among them."""

    @property
    def num_units(self) -> int:
        return int(self.notes["units"].sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AnnotatedBatch:
        moved = PackedBatch.to(self, device, non_blocking)
        return _annotate(moved, self.notes, lambda note: note.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AnnotatedBatch:
        return _annotate(PackedBatch.pin_memory(self), self.notes, lambda note: note.pin_memory())

    def split(self, parts: int) -> list[PackedBatch]:
        plain = PackedBatch.split(self, parts)
        return [
            _annotate(part, self.notes, lambda note, index=index: note.chunk(parts)[index])  # type: ignore[misc]
            for index, part in enumerate(plain)
        ]


def _annotate(batch: PackedBatch, notes: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> AnnotatedBatch:
    values = {entry.name: getattr(batch, entry.name) for entry in fields(PackedBatch)}
    return AnnotatedBatch(**values, notes={name: change(note) for name, note in notes.items()})
