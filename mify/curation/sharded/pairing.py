"""The fifth and sixth step: candidate pairs from the runs of all partitions, and their verification.

A reduce task takes some bands, or of one band a range of keys, over all partitions. A verification task takes the pairs
whose later document lies in one partition, and reads of the others just the rows it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify._core import minhash as core
from mify.curation.sharded.partitions import lower_bound, partitions_of, read_rows, rows_of, slices_of
from mify.curation.sharded.signing import RUN, RUNS, SIGNATURES, SURVIVORS
from mify.curation.signatures import SignatureConfig, as_texts, core_config

PAIRS, CAPPED, VERIFIED = "pairs-{:04}.npy", "capped.npy", "verified.npy"
PAIR = np.dtype([("later", "<u8"), ("earlier", "<u8")])
CAPPED_BUCKET = np.dtype([("band", "<u8"), ("key", "<u8"), ("documents", "<u8")])
VERIFIED_PAIR = np.dtype([("later", "<u8"), ("earlier", "<u8"), ("jaccard", "<f8")])

# Pairs in memory at once: 16 bytes each.
_PAIRS = 1 << 22


def plan_ranges(entries: int, bands: int, entries_per_task: int) -> list[tuple[int, int, int, int]]:
    """(first band, last + 1, part, parts of the keys) of each reduce task."""
    parts = max(1, -(-entries // entries_per_task))
    if parts > 1:
        return [(band, band + 1, part, parts) for band in range(bands) for part in range(parts)]
    width = max(1, min(bands, entries_per_task // max(1, entries)))
    return [(begin, min(begin + width, bands), 0, 1) for begin in range(0, bands, width)]


def pair(folder: Path, *, band_range: Sequence[int], bucket_cap: int, signed: Sequence[str]) -> dict[str, Any]:
    """Task: the candidate pairs of some bands, in runs sorted by (later, earlier).

    Args:
        band_range: an element of `plan_ranges`.
        bucket_cap: see csrc/minhash/runs.hpp.
        signed: the folders of all signed partitions.
    """
    first, last, part, parts = band_range
    files = buckets = 0
    capped: list[NDArray[Any]] = []
    for band in range(first, last):
        finder = core.BucketPairs(_entries(signed, band, part, parts), bucket_cap)
        while len(pairs := finder.next(_PAIRS)):
            np.save(folder / PAIRS.format(files), pairs.view(PAIR)[:, 0])
            files += 1
        buckets += finder.num_buckets
        found = np.empty(len(finder.capped), CAPPED_BUCKET)
        found["band"], found["key"], found["documents"] = band, finder.capped[:, 0], finder.capped[:, 1]
        capped.append(found)
    np.save(folder / CAPPED, np.concatenate(capped))
    return {"buckets": buckets, "files": files}


def _entries(signed: Sequence[str], band: int, part: int, parts: int) -> NDArray[np.uint64]:
    """(n, 2): the entries of a band in one of `parts` ranges of its keys, from all partitions."""
    low, high = np.uint64(part * 2**64 // parts), np.uint64(min((part + 1) * 2**64 // parts, 2**64 - 1))
    found = []
    for folder in signed:
        run = np.load(Path(folder) / RUNS, mmap_mode="r")[band]
        end = len(run) if part + 1 == parts else lower_bound(run, "key", high)
        found.append(np.array(run[lower_bound(run, "key", low) : end]))
    entries = np.concatenate(found) if found else np.empty(0, RUN)
    return entries.view(np.uint64).reshape(-1, 2)


def members(signed: Sequence[str], band: int, key: int) -> NDArray[np.uint64]:
    """The documents of a bucket, in order."""
    found = []
    for folder in signed:
        run = np.load(Path(folder) / RUNS, mmap_mode="r")[band]
        begin = lower_bound(run, "key", np.uint64(key))
        end = begin
        while end < len(run) and run[end]["key"] == key:
            end += 1
        found.append(np.array(run["document"][begin:end]))
    return np.sort(np.concatenate(found))


class Comparer:
    """Compares documents by their signatures and texts; of each partition only the documents at hand are read.

    Args:
        signature: the fields of a `SignatureConfig`.
        similarity: threshold, verify and min_matches, as `mify._core.minhash.similarities` takes them.
        gathered, signed: the folders of all partitions.
    """

    def __init__(
        self,
        signature: Mapping[str, Any],
        similarity: Mapping[str, Any],
        gathered: Sequence[str],
        signed: Sequence[str],
    ) -> None:
        self._config = core_config(SignatureConfig(**signature))
        self._similarity = similarity
        self._gathered, self._signed = gathered, signed

    def compare(self, later: NDArray[np.uint64], earlier: NDArray[np.uint64]) -> tuple[NDArray[np.float64], int]:
        """(similarity of each pair or -1 where it is below the threshold, how many were computed exactly).

        `later` are of one partition.
        """
        jaccard = np.empty(len(later), np.float64)
        computed = 0
        if not len(later):
            return jaccard, computed
        mine = self._open(int(partitions_of(later[:1])[0]), later)
        homes = partitions_of(earlier)
        for home in np.unique(homes).tolist():
            chosen = np.flatnonzero(homes == home)
            theirs = self._open(home, earlier[chosen])
            jaccard[chosen], count = core.similarities(
                mine.texts,
                mine.signatures,
                theirs.texts,
                theirs.signatures,
                mine.places(later[chosen]),
                theirs.places(earlier[chosen]),
                self._config,
                threads=1,
                **self._similarity,
            )
            computed += count
        return jaccard, computed

    def _open(self, partition: int, codes: NDArray[np.uint64]) -> _Side:
        verify = bool(self._similarity["verify"])
        return _Side(self._gathered[partition], self._signed[partition], np.unique(codes), verify)


class _Side:
    """Some documents of a partition: their signatures, and their texts where those are compared.

    Args:
        codes: of the documents, ascending.
    """

    def __init__(self, gathered: str, signed: str, codes: NDArray[np.uint64], verify: bool) -> None:
        self._codes = codes
        survivors = np.load(Path(signed) / SURVIVORS, mmap_mode="r")
        self.signatures = np.load(Path(signed) / SIGNATURES, mmap_mode="r")[np.searchsorted(survivors, codes)]
        self.texts = as_texts([])
        if verify:
            # Rows ascend on each side of the split only.
            rows = rows_of(codes)
            order = np.argsort(rows)
            self.texts = as_texts(read_rows(gathered, "text", rows[order])).take(np.argsort(order))

    def places(self, codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Where each code stands among the documents."""
        return np.searchsorted(self._codes, codes).astype(np.uint64)


def verify(
    folder: Path,
    *,
    partition: int,
    signature: Mapping[str, Any],
    similarity: Mapping[str, Any],
    gathered: Sequence[str],
    signed: Sequence[str],
    paired: Sequence[str],
) -> dict[str, Any]:
    """Task: of the candidate pairs whose later document is in a partition those at or above the threshold, sorted.

    Args:
        signature, similarity, gathered, signed: see `Comparer`.
        paired: the folders of the reduce tasks.
    """
    comparer = Comparer(signature, similarity, gathered, signed)
    candidates = computed = 0
    verified: list[NDArray[Any]] = []
    for pairs in _pieces(partition, paired):
        candidates += len(pairs)
        jaccard, count = comparer.compare(pairs["later"], pairs["earlier"])
        computed += count
        hits = np.flatnonzero(jaccard >= 0)
        found = np.empty(len(hits), VERIFIED_PAIR)
        found["later"], found["earlier"], found["jaccard"] = pairs["later"][hits], pairs["earlier"][hits], jaccard[hits]
        verified.append(found)
    np.save(folder / VERIFIED, np.concatenate(verified) if verified else np.empty(0, VERIFIED_PAIR))
    return {"candidate_pairs": candidates, "verified_pairs": computed}


def _pieces(partition: int, paired: Sequence[str]) -> Iterator[NDArray[Any]]:
    """The distinct candidate pairs of a partition, sorted, in pieces that end between two later documents."""
    runs = []
    for folder in paired:
        for path in sorted(Path(folder).glob(PAIRS.format(0).replace("0000", "*"))):
            run = np.load(path, mmap_mode="r")
            runs += [run[part] for part in slices_of(run, "later", partition) if part.stop > part.start]
    places = [0] * len(runs)
    while True:
        ends = [len(run) for run in runs]
        left = sum(end - place for end, place in zip(ends, places, strict=True))
        if not left:
            return
        if left > _PAIRS:
            # No run gives more than its share; the piece ends at the least document at which one would.
            share = max(1, _PAIRS // len(runs))
            heads = [(run, place) for run, place in zip(runs, places, strict=True) if place < len(run)]
            stop = min(run[min(place + share, len(run) - 1)]["later"] for run, place in heads)
            least = min(run[place]["later"] for run, place in heads)
            # A document with more pairs than that is taken whole.
            stop = max(stop, least + np.uint64(1))
            ends = [lower_bound(run, "later", stop) for run in runs]
        taken = np.concatenate([run[place:end] for run, place, end in zip(runs, places, ends, strict=True)])
        places = ends
        taken = taken[np.lexsort((taken["earlier"], taken["later"]))]
        fresh = np.ones(len(taken), bool)
        fresh[1:] = (taken["later"][1:] != taken["later"][:-1]) | (taken["earlier"][1:] != taken["earlier"][:-1])
        yield taken[fresh]
