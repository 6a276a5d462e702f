"""Whole sequences laid into rows: what conversations, pairs of answers and rollouts have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.data.batch import PackedBatch
from mify.data.packing import best_fit_decreasing
from mify.data.philox import Permutation, Purpose
from mify.data.rows import PackedRows


@dataclass(frozen=True, slots=True)
class Segment:
    """Token ids (uint32) and, for each, whether it carries loss as a target."""

    ids: NDArray[np.uint32]
    loss: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def answer(prompt: Sequence[int], answer: Sequence[int]) -> Segment:
        """A prompt without loss and an answer with it."""
        loss = np.zeros(len(prompt) + len(answer), np.bool_)
        loss[len(prompt) :] = True
        return Segment(np.array([*prompt, *answer], np.uint32), loss)


def pack_segments(
    rows: Sequence[Sequence[Segment]], *, context: int, pad_id: int, max_segments: int, sources: Sequence[str] = ()
) -> PackedBatch:
    """Rows of segments side by side, padded to `context` tokens.

    Args:
        max_segments: most segments in a row, padding's not counted; fixes the length of cu_seqlens.
    """
    count = len(rows)
    tokens = np.full((count, context), pad_id, np.uint32)
    loss = np.zeros((count, context), np.bool_)
    starts: list[int] = []
    row_starts, used = [0], []
    for index, row in enumerate(rows):
        place = 0
        for segment in row:
            starts.append(place)
            tokens[index, place : place + len(segment)] = segment.ids
            loss[index, place : place + len(segment)] = segment.loss
            place += len(segment)
        used.append(place)
        if place < context:
            starts.append(place)
        row_starts.append(len(starts))
    packed = PackedRows(
        tokens,
        np.packbits(loss, axis=1, bitorder="little"),
        np.array(starts, np.int32),
        np.array(row_starts, np.int64),
        np.array(used, np.int32),
    )
    return packed.to_batch(max_segments + 1, sources)


class PackedEpochs:
    """Rows of items, epoch after epoch: items in an order keyed by (seed, epoch), best-fit, bins in a keyed order.

    A row is a pure function of (items, seed, place), and `state` is the place.

    Args:
        entries: of an epoch: numbers of items, repeated as often as each is seen in it.
        lengths: tokens of each item. context: of a row. max_items: most items in a row.
        key: 64 bits of the items' content hash.
    """

    def __init__(
        self,
        entries: Callable[[int], Sequence[int]],
        lengths: Sequence[int],
        *,
        context: int,
        max_items: int,
        seed: int,
        key: int,
    ) -> None:
        self._entries, self._lengths = entries, lengths
        self._context, self._max_items, self._seed, self._key = context, max_items, seed, key
        self.epoch = self.bin = 0
        self._planned: tuple[int, list[list[int]]] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self.next_row()

    def next_row(self) -> list[int]:
        """The items of the next row."""
        bins = self.plan()
        row = bins[self.bin]
        self.bin += 1
        if self.bin == len(bins):
            self.epoch, self.bin = self.epoch + 1, 0
        return row

    def plan(self) -> list[list[int]]:
        """The rows of the present epoch, in their order."""
        if self._planned is None or self._planned[0] != self.epoch:
            entries = self._entries(self.epoch)
            order = Permutation(len(entries), self._seed, self.epoch, self._key, 0, Purpose.DOCUMENT_ORDER)
            drawn = [entries[order(place)] for place in range(len(entries))]
            bins = best_fit_decreasing([self._lengths[item] for item in drawn], self._context, self._max_items)
            shuffle = Permutation(len(bins), self._seed, self.epoch, self._key, 0, Purpose.BIN_ORDER)
            self._planned = self.epoch, [[drawn[i] for i in bins[shuffle(place)]] for place in range(len(bins))]
        return self._planned[1]

    @property
    def epochs(self) -> float:
        """Epochs gone through, the part of the present one included where it has been planned."""
        planned = self._planned
        return self.epoch + (self.bin / len(planned[1]) if planned and planned[0] == self.epoch else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "bin": self.bin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.bin = state["epoch"], state["bin"]
