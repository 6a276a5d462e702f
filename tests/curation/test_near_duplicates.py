"""Near-duplicate removal against the greedy star over all pairs in plain Python."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import reference_minhash as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.curation.minhash import choose_bands, collision_probability, min_matches, near_duplicates, signatures
from mify.errors import MifyError


def corpus(bases: int, copies: int, seed: int, words: int = 120) -> tuple[list[str], list[str]]:
    """Random programs of `words` words, and copies of them with a few words changed."""
    random_ = random.Random(seed)
    names = [f"name{i}" for i in range(300)]
    texts = [" ".join(random_.choices(names, k=random_.randrange(words // 2, words))) for _ in range(bases)]
    for _ in range(copies):
        changed = texts[random_.randrange(len(texts))].split(" ")
        for _ in range(random_.choice([0, 1, 2, 3, 5, 8])):
            changed[random_.randrange(len(changed))] = random_.choice(names).upper()
        texts.append(" ".join(changed))
    ids = [f"{random_.getrandbits(64):016x}" for _ in texts]
    return ids, texts


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 1.0])
def test_it_is_the_greedy_star_over_all_pairs(threshold: float) -> None:
    ids, texts = corpus(150, 450, seed=1)
    expected, clusters = reference.star(ids, texts, threshold)
    assert len(expected) > 30
    found = near_duplicates(ids, texts, jaccard_threshold=threshold)
    got = {index: (kept, similarity) for index, kept, similarity in found.removed}
    # The bands find a pair at the threshold with probability 0.999 or more; with this seed they find all of them.
    assert got == expected
    assert found.cluster_ids.tolist() == clusters
    assert found.report["removed"] == len(expected)


def test_every_removal_has_its_evidence() -> None:
    ids, texts = corpus(100, 500, seed=2)
    found = near_duplicates(ids, texts, num_perm=64, min_probability=0.9)
    removed = {index for index, _, _ in found.removed}
    assert len(removed) == len(found.removed)
    for index, kept, similarity in found.removed:
        sets = [set(reference.shingles(texts[i])) for i in (index, kept)]
        assert similarity == reference.jaccard(*sets) >= 0.7
        assert kept not in removed
        assert ids[kept] < ids[index]
        assert found.cluster_ids[index] == found.cluster_ids[kept]


def test_a_chain_does_not_remove_its_far_end() -> None:
    # A ~ B ~ C, but A is not similar to C: union-find would keep one of the three.
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(words[begin : begin + 40]) for begin in (0, 7, 14)]
    sets = [set(reference.shingles(text)) for text in texts]
    assert reference.jaccard(sets[0], sets[1]) > 0.6 > reference.jaccard(sets[0], sets[2])
    found = near_duplicates(["a", "b", "c"], texts, jaccard_threshold=0.6)
    assert [(index, kept) for index, kept, _ in found.removed] == [(1, 0)]
    # With the middle one first, both others are similar to a kept one, and go.
    found = near_duplicates(["b", "a", "c"], texts, jaccard_threshold=0.6)
    assert [(index, kept) for index, kept, _ in found.removed] == [(0, 1), (2, 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab é\n"), max_size=24), max_size=30), st.randoms(use_true_random=False))
def test_small_texts_of_any_kind(texts: list[str], random_: random.Random) -> None:
    ids = [f"{i:03}" for i in range(len(texts))]
    random_.shuffle(ids)
    expected, clusters = reference.star(ids, texts, 0.6, n=2)
    found = near_duplicates(ids, texts, jaccard_threshold=0.6, ngram=2, bands=(128, 1))
    got = {index: (kept, similarity) for index, kept, similarity in found.removed}
    assert got == expected
    assert found.cluster_ids.tolist() == clusters


@pytest.mark.parametrize(("verify", "cap"), [(True, 1024), (False, 1024), (True, 2)])
def test_neither_input_order_nor_threads_matter(verify: bool, cap: int) -> None:
    ids, texts = corpus(300, 1500, seed=3, words=60)
    texts += [texts[0]] * 40
    ids += [f"x{i:02}" for i in range(40)]
    first = near_duplicates(ids, texts, verify=verify, bucket_cap=cap)
    assert (first.report["capped_buckets"] > 0) == (cap == 2)
    order = list(range(len(ids)))
    random.Random(4).shuffle(order)
    shuffled = [ids[i] for i in order], [texts[i] for i in order]
    again = near_duplicates(*shuffled, verify=verify, bucket_cap=cap, threads=3)
    assert sorted((order[i], order[kept], similarity) for i, kept, similarity in again.removed) == first.removed
    assert again.report == first.report
    assert {order[i]: order[c] for i, c in enumerate(again.cluster_ids)} == dict(enumerate(first.cluster_ids.tolist()))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_looked_at_is_counted(threads: int) -> None:
    # More than a block of documents, and clusters of which more lie in a block than are compared ahead.
    ids, texts = corpus(60, 1500, seed=4)
    found = near_duplicates(ids, texts, threads=threads)
    signed = signatures(texts)
    bands, rows = found.report["bands"], found.report["rows"]
    keys = [{(band, row[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)} for row in signed.values]
    kept = sorted(set(range(len(ids))) - {index for index, _, _ in found.removed}, key=ids.__getitem__)
    pairs = [(i, k) for i in range(len(ids)) for k in kept if ids[k] < ids[i] and keys[i] & keys[k]]
    alike = [np.count_nonzero(signed.values[i] == signed.values[k]) >= min_matches(0.7, 128) for i, k in pairs]
    assert len(pairs) > 1500
    assert found.report["candidate_pairs"] == len(pairs)
    assert found.report["verified_pairs"] == sum(alike)


anything = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates, too


@given(ids=st.lists(anything | st.text("ab\x00", min_size=6, max_size=10), unique=True, max_size=12))
@settings(max_examples=200, deadline=None)
def test_ids_of_any_kind_are_ordered_as_python_does(ids: list[str]) -> None:
    found = near_duplicates(ids, ["one two three"] * len(ids))
    first = min(range(len(ids)), key=ids.__getitem__, default=None)
    assert found.removed == [(i, first, 1.0) for i in range(len(ids)) if i != first]


def test_without_verification_estimates_decide() -> None:
    ids, texts = corpus(200, 600, seed=5)
    exact, estimated = (near_duplicates(ids, texts, verify=verify) for verify in (True, False))
    assert estimated.report["verified"] is False
    assert estimated.report["estimate_standard_error"] == pytest.approx(math.sqrt(0.7 * 0.3 / 128))
    exact_set, estimated_set = ({index for index, _, _ in found.removed} for found in (exact, estimated))
    assert exact_set != estimated_set
    assert len(exact_set & estimated_set) > 0.8 * len(exact_set | estimated_set)
    for index, kept, similarity in estimated.removed:
        assert similarity >= 0.7
        assert similarity * 128 == int(similarity * 128)
        sets = [set(reference.shingles(texts[i])) for i in (index, kept)]
        assert abs(reference.jaccard(*sets) - similarity) < 6 * 0.0405


@pytest.mark.parametrize("scheme", ["affine64", "one_permutation"])
def test_other_schemes_find_the_same(scheme: str) -> None:
    ids, texts = corpus(80, 240, seed=6)
    expected, _ = reference.star(ids, texts, 0.7)
    found = near_duplicates(ids, texts, scheme=scheme)
    got = {index: (kept, similarity) for index, kept, similarity in found.removed}
    assert got == expected


def test_documents_without_words_are_never_near_duplicates() -> None:
    found = near_duplicates(list("abcdef"), ["", "", "...", "???", "word", "WORD"])
    assert found.removed == [(5, 4, 1.0)]
    assert found.report["documents_without_words"] == 4


def test_invalid_utf8_is_counted() -> None:
    found = near_duplicates(["a", "b"], [b"caf\xe9 x y z", b"caf x y z"])
    assert found.report["documents_with_invalid_utf8"] == 1
    assert found.removed == [(1, 0, 1.0)]


def test_capped_buckets_measure_what_they_lose() -> None:
    # One long text with one word changed in each copy: all share many buckets. At threshold 0.99 all are kept, so the
    # buckets fill; at the cap, what is not compared is a loss only where a pair reaches the threshold.
    base = [f"w{i}" for i in range(400)]
    texts = []
    for i in range(120):
        changed = list(base)
        changed[i * 3] = "changed"
        texts.append(" ".join(changed))
    ids = [f"{i:03}" for i in range(120)]
    free = near_duplicates(ids, texts, jaccard_threshold=0.99, bands=(32, 4))
    assert free.removed == []
    assert free.report["capped_buckets"] == 0
    capped = near_duplicates(ids, texts, jaccard_threshold=0.99, bands=(32, 4), bucket_cap=8)
    assert capped.removed == []
    assert capped.report["capped_buckets"] > 0
    assert capped.report["skipped_pairs"] > 0
    assert capped.report["estimated_lost_pairs"] == 0.0
    # Every fourth text comes again: its copy is equal, but with a cap of one its bucket rarely lists the original.
    texts += texts[::4]
    ids += [f"copy{i:03}" for i in range(30)]
    whole = near_duplicates(ids, texts, jaccard_threshold=0.99, bands=(2, 64))
    assert len(whole.removed) == 30
    lossy = near_duplicates(ids, texts, jaccard_threshold=0.99, bands=(1, 1), bucket_cap=1)
    assert len(lossy.removed) < 30
    assert lossy.report["skipped_pairs_sampled"] == min(1000, lossy.report["skipped_pairs"])
    lost = 30 - len(lossy.removed)
    assert lossy.report["estimated_lost_pairs"] == pytest.approx(lost, rel=1.0)


def test_bands_are_chosen_by_the_formula() -> None:
    assert choose_bands(0.7, 128) == (32, 4)
    assert choose_bands(0.7, 255) == (51, 5)
    assert choose_bands(0.7, 256) == (51, 5)
    assert choose_bands(0.8, 128) == (25, 5)
    assert collision_probability(0.7, 25, 5) == pytest.approx(0.990, abs=5e-4)
    assert collision_probability(0.7, 32, 4) == pytest.approx(1 - (1 - 0.7**4) ** 32)
    for threshold in (0.3, 0.5, 0.7, 0.85, 0.95):
        for num_perm in (64, 128, 250):
            bands, rows = choose_bands(threshold, num_perm)
            assert bands * rows <= num_perm
            assert collision_probability(threshold, bands, rows) >= 0.999
            assert collision_probability(threshold, num_perm // (rows + 1), rows + 1) < 0.999
    with pytest.raises(MifyError, match="probability below"):
        choose_bands(0.1, 16)


def test_prefilter_bound_is_the_binomial_tail() -> None:
    for threshold, num_perm in [(0.7, 128), (0.5, 64), (0.9, 256)]:
        bound = min_matches(threshold, num_perm)
        tail = [
            sum(math.comb(num_perm, i) * threshold**i * (1 - threshold) ** (num_perm - i) for i in range(count))
            for count in (bound, bound + 1)
        ]
        assert tail[0] <= 1e-9 < tail[1]
    assert min_matches(1.0, 128) == 128
    assert min_matches(0.7, 65536) > 0.6 * 65536


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    near_duplicates(["a", "b"], ["x y", "y z"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 2)]


def test_no_documents() -> None:
    found = near_duplicates([], [])
    assert found.removed == []
    assert found.cluster_ids.dtype == np.int64
    assert len(found.cluster_ids) == 0


@pytest.mark.parametrize(
    ("ids", "texts", "options", "message"),
    [
        (["a", "b", "a"], ["x", "y", "z"], {}, "'a' occurs at 0 and 2"),
        (["a"], ["x", "y"], {}, "1 ids for 2 texts"),
        (["a"], ["x"], {"jaccard_threshold": 0.0}, "jaccard_threshold is 0.0"),
        (["a"], ["x"], {"jaccard_threshold": 1.5}, "jaccard_threshold is 1.5"),
        (["a"], ["x"], {"jaccard_threshold": float("nan")}, "jaccard_threshold is nan"),
        (["a"], ["x"], {"num_perm": 0}, "num_perm is 0"),
        (["a"], ["x"], {"bands": (32, 5)}, "do not fit"),
        (["a"], ["x"], {"bands": (0, 5)}, "do not fit"),
        (["a"], ["x"], {"bucket_cap": 0}, "bucket_cap is 0"),
        (["a"], ["x"], {"threads": 0}, "threads 0"),
    ],
)
def test_bad_input_is_named(ids: list[str], texts: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(MifyError, match=message):
        near_duplicates(ids, texts, **options)  # type: ignore[arg-type]
