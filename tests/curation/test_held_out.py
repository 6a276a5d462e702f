"""The held-out split: by content, in every domain, the same for the same seed."""

from __future__ import annotations

import pytest

from mify.curation.documents import Document
from mify.curation.held_out import held_out_hashes, is_held_out, keyed_hash


def make(index: int, domain: str = "code", path: str = "") -> Document:
    return Document.create(f"text {index}", domain, "python", "MIT", "s", "r", path or f"{index}.py")


def test_share_and_minimum_hold() -> None:
    hashes = [make(index).text_sha256 for index in range(5000)]
    assert 70 <= len(held_out_hashes(hashes, fraction=0.02, min_count=10, seed=0)) <= 140  # 100, standard deviation 10
    assert len(held_out_hashes(hashes[:30], fraction=0.02, min_count=10, seed=0)) == 10


def test_copies_stand_on_one_side() -> None:
    first, second = (make(7, path=path).text_sha256 for path in ("a.py", "b.py"))
    for seed in range(50):
        assert len({is_held_out(digest, fraction=0.3, seed=seed) for digest in (first, second)}) == 1


def test_the_split_does_not_depend_on_order_and_does_on_the_seed() -> None:
    hashes = [make(index).text_sha256 for index in range(500)]
    first = held_out_hashes(hashes, fraction=0.1, min_count=0, seed=1)
    assert first == held_out_hashes(hashes[::-1], fraction=0.1, min_count=0, seed=1)
    assert first != held_out_hashes(hashes, fraction=0.1, min_count=0, seed=2)


def test_one_content_is_judged_as_among_all() -> None:
    hashes = [make(index).text_sha256 for index in range(500)]
    for fraction in (0.0, 0.02, 0.5):
        alone = {digest for digest in hashes if is_held_out(digest, fraction=fraction, seed=3)}
        assert alone == held_out_hashes(hashes, fraction=fraction, min_count=0, seed=3)


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    hashes = [make(index).text_sha256 for index in range(1000)]
    small = held_out_hashes(hashes, fraction=0.05, min_count=0, seed=0)
    large = held_out_hashes(hashes, fraction=0.20, min_count=0, seed=0)
    assert small < large


def test_training_keeps_at_least_half() -> None:
    hashes = [make(index).text_sha256 for index in range(7)]
    assert len(held_out_hashes(hashes, fraction=0.01, min_count=100, seed=0)) == 3
    assert held_out_hashes([], fraction=0.5, min_count=5, seed=0) == frozenset()
    assert held_out_hashes(hashes, fraction=0.0, min_count=100, seed=0) == frozenset()
    with pytest.raises(ValueError, match="fraction = 1.0"):
        held_out_hashes(hashes, fraction=1.0, min_count=0, seed=0)


def test_keyed_hash_frames_its_parts_and_is_uniform() -> None:
    assert keyed_hash(0, "ab", "c") != keyed_hash(0, "a", "bc")
    assert keyed_hash(0, "a") != keyed_hash(1, "a")
    mean = sum(keyed_hash(7, str(index)) / 2**64 for index in range(4000)) / 4000
    assert abs(mean - 0.5) < 0.02
