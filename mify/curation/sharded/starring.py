"""The seventh step: one pass over the verified pairs, in the order of the documents, that decides who goes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify._core import minhash as core
from mify.curation.held_out import keyed_hash
from mify.curation.sharded.pairing import CAPPED, VERIFIED, Comparer, members
from mify.curation.sharded.partitions import is_held_out, lower_bound, partitions_of, slices_of
from mify.curation.sharded.records import read_entries
from mify.curation.sharded.signing import SURVIVORS

REMOVED, CLUSTERS = "removed.bin", "clusters.bin"
REMOVAL = np.dtype([("removed", "<u8"), ("kept", "<u8"), ("jaccard", "<f8")])
CLUSTER = np.dtype([("document", "<u8"), ("cluster", "<u8")])

# Pairs that capped buckets did not compare, drawn to estimate what that lost.
_SAMPLED_PAIRS = 1000
# Documents whose clusters are looked up at once.
_BLOCK = 1 << 20


def star(
    folder: Path,
    *,
    counts: Sequence[Sequence[int]],
    bucket_cap: int,
    signature: Mapping[str, Any],
    similarity: Mapping[str, Any],
    gathered: Sequence[str],
    signed: Sequence[str],
    paired: Sequence[str],
    verified: Sequence[str],
) -> dict[str, Any]:
    """Task: the removals, sorted by removed document, and the cluster of every document that is not alone in its own.

    Args:
        counts: (held-out, all) survivors of each partition.
        bucket_cap: of the reduce tasks.
        signature, similarity, gathered, signed: see `Comparer`.
        paired, verified: the folders of the reduce and of the verification tasks.
    """
    numbering = _Numbering(counts, signed)
    decider = core.StarPass(numbering.total)
    removals = 0
    with (folder / REMOVED).open("wb") as file:
        for pairs in _in_order(verified):
            later, earlier = numbering.numbers(pairs["later"]), numbering.numbers(pairs["earlier"])
            removed, kept, jaccard = decider.add(later, earlier, np.ascontiguousarray(pairs["jaccard"]))
            found = np.empty(len(removed), REMOVAL)
            found["removed"], found["kept"] = numbering.codes(removed), numbering.codes(kept)
            found["jaccard"] = jaccard
            found.tofile(file)
            removals += len(found)
    grouped = 0
    with (folder / CLUSTERS).open("wb") as file:
        for first, last in numbering.blocks():
            documents, clusters = decider.clusters(first, last)
            found = np.empty(len(documents), CLUSTER)
            found["document"], found["cluster"] = numbering.codes(documents), numbering.codes(clusters)
            found.tofile(file)
            grouped += len(found)
    comparer = Comparer(signature, similarity, gathered, signed)
    gone = read_entries(folder / REMOVED, REMOVAL)
    loss = _measure_loss(paired, signed, bucket_cap, gone, comparer, int(signature["seed"]))
    return {"removed": removals, "documents_in_clusters": grouped, **loss}


class _Numbering:
    """Consecutive numbers for the survivors, in the order of their codes: what 8 bytes a document are spent on."""

    def __init__(self, counts: Sequence[Sequence[int]], signed: Sequence[str]) -> None:
        held_out = np.array([held for held, _ in counts], np.int64)
        self._held_out = held_out
        train = np.array([total for _, total in counts], np.int64) - held_out
        self._signed = signed
        self.total = int(held_out.sum() + train.sum())
        # The number of each partition's first held-out document, and of its first one for training.
        self._first = (np.cumsum(held_out) - held_out, held_out.sum() + np.cumsum(train) - train)

    def numbers(self, codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        out = np.empty(len(codes), np.uint64)
        homes = partitions_of(codes)
        for home in np.unique(homes).tolist():
            chosen = np.flatnonzero(homes == home)
            survivors = np.load(Path(self._signed[home]) / SURVIVORS, mmap_mode="r")
            places = np.searchsorted(survivors, codes[chosen])
            held = is_held_out(codes[chosen])
            train = self._first[1][home] + places - self._held_out[home]
            out[chosen] = np.where(held, self._first[0][home] + places, train)
        return out

    def blocks(self) -> Iterator[tuple[int, int]]:
        """[first, last) of consecutive numbers."""
        for first in range(0, self.total, _BLOCK):
            yield first, min(first + _BLOCK, self.total)

    def codes(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The codes of some numbers."""
        out = np.empty(len(numbers), np.uint64)
        held_total = int(self._held_out.sum())
        for side in (0, 1):
            chosen = np.flatnonzero((numbers >= held_total) == bool(side))
            firsts = self._first[side]
            homes = np.searchsorted(firsts, numbers[chosen].astype(np.int64), side="right") - 1
            for home in np.unique(homes).tolist():
                here = chosen[homes == home]
                survivors = np.load(Path(self._signed[home]) / SURVIVORS, mmap_mode="r")
                places = numbers[here].astype(np.int64) - int(firsts[home]) + (int(self._held_out[home]) if side else 0)
                out[here] = survivors[places]
        return out


def _in_order(verified: Sequence[str]) -> Iterator[NDArray[Any]]:
    """The verified pairs of all partitions: those of held-out documents first."""
    for side in (0, 1):
        for partition, folder in enumerate(verified):
            pairs = np.load(Path(folder) / VERIFIED, mmap_mode="r")
            part = pairs[slices_of(pairs, "later", partition)[side]]
            if len(part):
                yield np.array(part)


def _measure_loss(
    paired: Sequence[str],
    signed: Sequence[str],
    bucket_cap: int,
    removed: NDArray[Any],
    comparer: Comparer,
    seed: int,
) -> dict[str, Any]:
    """What capped buckets cost: the pairs they skipped, and of a sample of them the share that was lost.

    A skipped pair is a loss where both documents stayed though they reach the threshold.
    """
    capped = np.concatenate([np.load(Path(folder) / CAPPED) for folder in paired])
    capped = capped[np.lexsort((capped["key"], capped["band"]))]
    beyond = [int(documents) - bucket_cap for documents in capped["documents"]]
    skipped = [count * (count - 1) // 2 for count in beyond]
    ends = list(accumulate(skipped))
    total = ends[-1] if ends else 0
    draws = min(_SAMPLED_PAIRS, total)
    later, earlier = [], []
    found: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))
    for place in sorted(
        draw if draws == total else keyed_hash(seed, "skipped pairs", str(draw)) * total >> 64 for draw in range(draws)
    ):
        bucket = bisect_right(ends, place)
        rest = place - (ends[bucket - 1] if bucket else 0)
        if found[0] != bucket:
            found = bucket, members(signed, int(capped["band"][bucket]), int(capped["key"][bucket]))[bucket_cap:]
        # Pair (x, y), x < y, has the number y (y - 1) / 2 + x.
        y = int((1 + (1 + 8 * rest) ** 0.5) / 2)
        y += (y + 1) * y // 2 <= rest
        y -= y * (y - 1) // 2 > rest
        later.append(int(found[1][y]))
        earlier.append(int(found[1][rest - y * (y - 1) // 2]))
    pairs = np.array([later, earlier], np.uint64)
    stayed = np.array([not any(_is_in(removed, code) for code in pair) for pair in pairs.T], bool)
    lost = 0
    homes = partitions_of(pairs[0])
    for home in np.unique(homes[stayed]).tolist():
        chosen = stayed & (homes == home)
        lost += int(np.count_nonzero(comparer.compare(pairs[0][chosen], pairs[1][chosen])[0] >= 0))
    return {
        "capped_buckets": len(capped),
        "skipped_pairs": total,
        "skipped_pairs_sampled": draws,
        "skipped_pairs_sampled_lost": lost,
    }


def _is_in(removed: NDArray[Any], code: np.uint64) -> bool:
    place = lower_bound(removed, "removed", code)
    return place < len(removed) and removed[place]["removed"] == code
