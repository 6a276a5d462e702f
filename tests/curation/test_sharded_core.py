"""The C++ of the sharded near-duplicates against plain Python: runs, buckets, comparisons, the star in order."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import reference_minhash as reference
from numpy.typing import NDArray

from mify._core import minhash as core
from mify.curation.signatures import SignatureConfig, as_texts, core_config, signatures

BANDS, ROWS = 8, 4
CONFIG = SignatureConfig(num_perm=32)


def texts(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    found = [" ".join(random_.choices([f"w{i}" for i in range(50)], k=30)) for _ in range(count // 3)]
    while len(found) < count - 2:
        words = random_.choice(found).split(" ")
        words[random_.randrange(len(words))] = "changed"
        found.append(" ".join(words))
    return [*found, "", "!"]


def signed(many: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    found = signatures(many, CONFIG)
    return found.values, found.num_shingles


def buckets(values: NDArray[np.uint32], num_shingles: NDArray[np.uint64], band: int) -> list[list[int]]:
    found = defaultdict(list)
    for row in np.flatnonzero(num_shingles).tolist():
        found[values[row, band * ROWS : (band + 1) * ROWS].tobytes()].append(row)
    return [members for members in found.values() if len(members) > 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_runs_hold_every_document_with_a_word_sorted(threads: int) -> None:
    values, num_shingles = signed(texts(90, 1))
    codes = np.arange(100, 190, dtype=np.uint64)[::-1].copy()
    runs = core.band_runs(values, num_shingles, codes, BANDS, ROWS, threads)
    assert runs.shape == (BANDS, 88, 2)
    for band in range(BANDS):
        entries = [tuple(entry) for entry in runs[band].tolist()]
        assert entries == sorted(entries)
        assert {code for _, code in entries} == set(codes[num_shingles > 0].tolist())
        grouped = defaultdict(list)
        for key, code in entries:
            grouped[key].append(code)
        expected = {tuple(sorted(codes[m].tolist())) for m in map(np.array, buckets(values, num_shingles, band))}
        assert {tuple(members) for members in grouped.values() if len(members) > 1} == expected


@pytest.mark.parametrize("limit", [1, 7, 1 << 20])
def test_all_pairs_of_a_bucket_come_once(limit: int) -> None:
    values, num_shingles = signed(texts(120, 2))
    runs = core.band_runs(values, num_shingles, np.arange(120, dtype=np.uint64), BANDS, ROWS, 1)
    for band in range(BANDS):
        finder = core.BucketPairs(runs[band][::-1].copy(), 1000)
        found: list[tuple[int, int]] = []
        while len(pairs := finder.next(limit)):
            assert pairs.tolist() == sorted(pairs.tolist())
            found += map(tuple, pairs.tolist())
        members = buckets(values, num_shingles, band)
        expected = [(later, earlier) for group in members for earlier, later in combinations(group, 2)]
        assert sorted(found) == sorted(expected)
        assert finder.num_buckets == len(members)
        assert finder.capped.shape == (0, 2)
        assert len(finder.next(limit)) == 0


def test_a_capped_bucket_pairs_with_its_first_documents() -> None:
    entries = np.array([[5, document] for document in range(10)] + [[6, 3], [6, 1]], np.uint64)
    finder = core.BucketPairs(entries, 4)
    pairs = {tuple(pair) for pair in finder.next(1000).tolist()}
    expected = {(later, earlier) for later in range(10) for earlier in range(min(later, 4))} | {(3, 1)}
    assert pairs == expected
    assert finder.capped.tolist() == [[5, 10]]
    assert finder.num_buckets == 2


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("verify", [True, False])
def test_pairs_of_two_parts_are_compared(verify: bool, threads: int) -> None:
    left, right = texts(40, 3), texts(40, 3)[::-1]
    mine, theirs = signed(left)[0], signed(right)[0]
    later, earlier = (
        grid.ravel().astype(np.uint64) for grid in np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    )
    found, computed = core.similarities(
        as_texts(left), mine, as_texts(right), theirs, later, earlier, core_config(CONFIG),
        threshold=0.5, verify=verify, min_matches=0, threads=threads,
    )  # fmt: skip
    assert computed == (1600 if verify else 0)
    hits = 0
    for x, y, similarity in zip(later.tolist(), earlier.tolist(), found.tolist(), strict=True):
        if verify:
            expected = reference.jaccard(set(reference.shingles(left[x])), set(reference.shingles(right[y])))
        else:
            expected = float(np.mean(mine[x] == theirs[y]))
        assert similarity == (expected if expected >= 0.5 else -1)
        hits += expected >= 0.5
    assert hits > 40


def test_the_prefilter_spares_comparisons() -> None:
    many = texts(60, 4)
    values = signed(many)[0]
    later = np.arange(1, 58, dtype=np.uint64)
    equal = np.count_nonzero(values[1:58] == values[0], axis=1)
    arguments = (as_texts(many), values, as_texts(many), values, later, np.zeros(57, np.uint64), core_config(CONFIG))
    _, computed = core.similarities(*arguments, threshold=0.5, verify=True, min_matches=10, threads=1)
    assert computed == np.count_nonzero(equal >= 10)


def test_the_star_over_pairs_in_any_blocks() -> None:
    random_ = random.Random(5)
    pairs = sorted(
        (later, earlier, round(random_.uniform(0.7, 1.0), 2))
        for later, earlier in {tuple(sorted(random_.sample(range(200), 2), reverse=True)) for _ in range(300)}
    )
    removed: dict[int, tuple[int, float]] = {}
    parent = list(range(200))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for later in range(200):
        matches = [(jaccard, -earlier) for l, earlier, jaccard in pairs if l == later and earlier not in removed]
        for _, earlier in matches:
            low, high = sorted((root(later), root(-earlier)))
            parent[high] = low
        if matches:
            removed[later] = (-max(matches)[1], max(matches)[0])
    cuts = [0, *(i for i in range(1, len(pairs)) if pairs[i][0] != pairs[i - 1][0]), len(pairs)]
    for step in (1, 10, 1000):
        star = core.StarPass(200)
        found: dict[int, tuple[int, float]] = {}
        bounds = [*cuts[::step], len(pairs)]
        for begin, end in pairwise(bounds):
            block = pairs[begin:end]
            columns = [np.array([pair[i] for pair in block], np.uint64) for i in range(2)]
            result = star.add(*columns, np.array([pair[2] for pair in block]))
            found |= {r: (k, j) for r, k, j in zip(*(column.tolist() for column in result), strict=True)}
        assert found == removed
        documents, clusters = star.clusters(0, 200)
        roots = [root(x) for x in range(200)]
        assert documents.tolist() == [x for x in range(200) if roots.count(roots[x]) > 1]
        assert clusters.tolist() == [roots[x] for x in documents.tolist()]
    assert len(removed) > 80


def test_bad_arguments_are_named() -> None:
    star = core.StarPass(10)
    one = lambda value: np.array([value], np.uint64)  # noqa: E731
    star.add(one(5), one(3), np.array([0.9]))
    for later, earlier, message in ((5, 2, "order"), (10, 2, "order"), (7, 7, "ascend"), (7, 8, "ascend")):
        with pytest.raises(ValueError, match=message):
            star.add(one(later), one(earlier), np.array([0.9]))
    with pytest.raises(ValueError, match="one length"):
        star.add(one(7), np.empty(0, np.uint64), np.array([0.9]))
    with pytest.raises(IndexError, match="out of range"):
        star.clusters(0, 11)
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        core.BucketPairs(np.zeros(4, np.uint64), 4)
    with pytest.raises(ValueError, match="bucket_cap"):
        core.BucketPairs(np.zeros((4, 2), np.uint64), 0)
    values, num_shingles = signed(texts(9, 6))
    with pytest.raises(ValueError, match="one code a signature"):
        core.band_runs(values, num_shingles, np.zeros(8, np.uint64), BANDS, ROWS, 1)
    settings = core_config(CONFIG)
    many = as_texts(texts(9, 6))
    options = {"threshold": 0.5, "verify": True, "min_matches": 0, "threads": 1}
    with pytest.raises(IndexError, match="row of a pair"):
        core.similarities(many, values, many, values, one(9), one(0), settings, **options)
    with pytest.raises(ValueError, match="two configurations"):
        core.similarities(many, values, many, values[:, :16].copy(), one(0), one(0), settings, **options)
