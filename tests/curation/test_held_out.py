"""The held-out split: by content, in every domain, the same for the same seed."""

from __future__ import annotations

import pytest

from mify.curation.documents import Document
from mify.curation.held_out import held_out_hashes, keyed_hash, split_held_out


def make(index: int, domain: str = "code", path: str = "") -> Document:
    return Document.create(f"text {index}", domain, "python", "MIT", "s", "r", path or f"{index}.py")


def test_share_and_minimum_hold_per_domain() -> None:
    documents = [make(index) for index in range(5000)] + [make(index, "math", f"m{index}") for index in range(30)]
    train, held = split_held_out(documents, fraction=0.02, min_documents=10, seed=0)
    assert len(train) + len(held) == len(documents)
    code = sum(document.domain == "code" for document in held)
    assert 70 <= code <= 140  # 100 expected, 10 of standard deviation
    assert sum(document.domain == "math" for document in held) >= 10


def test_copies_stand_on_one_side_even_across_domains() -> None:
    documents = [make(index % 100, ("code", "text")[index % 2], f"{index}") for index in range(1000)]
    train, held = split_held_out(documents, fraction=0.3, min_documents=0, seed=3)
    assert held
    assert {document.text_sha256 for document in train}.isdisjoint(document.text_sha256 for document in held)


def test_the_split_does_not_depend_on_order_and_does_on_the_seed() -> None:
    documents = [make(index) for index in range(500)]
    first = split_held_out(documents, fraction=0.1, min_documents=0, seed=1)[1]
    again = split_held_out(documents[::-1], fraction=0.1, min_documents=0, seed=1)[1]
    other = split_held_out(documents, fraction=0.1, min_documents=0, seed=2)[1]
    assert {document.id for document in first} == {document.id for document in again}
    assert {document.id for document in first} != {document.id for document in other}


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
