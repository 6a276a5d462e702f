"""Philox against Random123's vectors, the keyed permutation, thresholds; C++ against Python."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from mify._core import packing
from mify.data.philox import Permutation, Purpose, below, draw, philox, threshold

# kat_vectors of Random123 1.14: philox4x32 10 — counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    assert philox(words(counter), words(key)) == words(expected)  # type: ignore[arg-type]
    assert tuple(packing.philox(words(counter), words(key))) == words(expected)


def test_philox_in_cpp_equals_python() -> None:
    rng = random.Random(0)
    for _ in range(200):
        counter = tuple(rng.getrandbits(32) for _ in range(4))
        key = (rng.getrandbits(32), rng.getrandbits(32))
        assert tuple(packing.philox(counter, key)) == philox(counter, key)  # type: ignore[arg-type]


def test_every_part_of_the_key_counts() -> None:
    base = draw(1, 2, 3, 4, Purpose.FIM)
    others = [
        draw(2, 2, 3, 4, Purpose.FIM),
        draw(1 + (1 << 32), 2, 3, 4, Purpose.FIM),
        draw(1, 3, 3, 4, Purpose.FIM),
        draw(1, 2, 4, 4, Purpose.FIM),
        draw(1, 2, 3 + (1 << 32), 4, Purpose.FIM),
        draw(1, 2, 3, 5, Purpose.FIM),
        draw(1, 2, 3, 4, Purpose.CUT),
    ]
    assert len({base, *others}) == 8


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 64, 65, 1000, 4097])
def test_the_permutation_is_one_and_equal_in_cpp(size: int) -> None:
    order = Permutation(size, 11, 5, 2**63 + 9, 7, Purpose.DOCUMENT_ORDER)
    images = [order(i) for i in range(size)]
    assert sorted(images) == list(range(size))
    assert packing.permutation(size, 11, 5, 2**63 + 9, 7, 3, 0, size).tolist() == images
    assert packing.permutation(size, 11, 5, 2**63 + 9, 7, 3, size // 2, size).tolist() == images[size // 2 :]


def test_the_permutation_shuffles_and_depends_on_its_key() -> None:
    orders = [packing.permutation(1000, seed, epoch, 1, 0, 3, 0, 1000) for seed in (1, 2) for epoch in (0, 1)]
    for order in orders:
        assert abs(sum(abs(image - i) for i, image in enumerate(order)) / 1000 - 333) < 40
        assert sum(order == sorted(order)) < 10
    assert sum(int((a == b).sum()) for i, a in enumerate(orders) for b in orders[:i]) < 30


def test_a_large_permutation_stays_in_range() -> None:
    images = packing.permutation(10**12, 1, 0, 1, 0, 3, 10**11, 10**11 + 1000)
    assert 0 <= images.min() <= images.max() < 10**12
    assert len(set(images.tolist())) == 1000


def test_thresholds_are_exact_integers() -> None:
    assert threshold(0.0) == 0
    assert threshold(1.0) == 1 << 32
    for rate in (0.15, 0.25, 0.3, 1 / 3, 1e-12):
        assert threshold(rate) == int(Fraction(rate) * (1 << 32))


def test_below_covers_its_range() -> None:
    assert below(0, 7) == 0
    assert below(2**64 - 1, 7) == 6
    assert [below(k << 61, 8) for k in range(8)] == list(range(8))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="low <= high <= size"):
        packing.permutation(5, 1, 0, 1, 0, 3, 0, 6)
