"""Best-fit decreasing against its twin and against what packing means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mify._core import packing
from mify.data.packing import best_fit_decreasing


def bins_of(lengths: list[int], capacity: int, max_pieces: int) -> list[list[int]]:
    starts, pieces = packing.best_fit_decreasing(np.array(lengths, np.int32), capacity, max_pieces)
    return [pieces[a:b].tolist() for a, b in itertools.pairwise(starts)]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=120),
    max_pieces=st.sampled_from([1, 2, 5, 1000]),
    capacity=st.sampled_from([300, 301, 4096, 70_000]),
)
def test_it_equals_the_readable_twin(lengths: list[int], max_pieces: int, capacity: int) -> None:
    bins = bins_of(lengths, capacity, max_pieces)
    assert bins == best_fit_decreasing(lengths, capacity, max_pieces)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= capacity and len(members) <= max_pieces for members in bins)


def naive_best_fit(lengths: list[int], capacity: int) -> int:
    """Bins that best-fit decreasing needs, by looking at every bin for every piece."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(free) if room >= length]
        if fitting:
            free[min(fitting, key=lambda i: free[i])] -= length
        else:
            free.append(capacity - length)
    return len(free)


def test_it_needs_as_many_bins_as_the_naive_way() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 500, 300).tolist()
        assert len(bins_of(lengths, 500, 10**6)) == naive_best_fit(lengths, 500)


def test_a_window_of_real_lengths_is_full() -> None:
    """Documents of median 1,500 tokens with a long tail, overlong ones cut: 99.9% of 8,192 is used."""
    rng = np.random.default_rng(0)
    documents = np.exp(rng.normal(np.log(1500), 1.4, 60_000)).astype(np.int64) + 2
    whole = np.repeat(8192, int((documents // 8192).sum()))
    rest = documents % 8192
    lengths = np.concatenate([whole, rest[rest > 0]]).astype(np.int32)
    starts, _ = packing.best_fit_decreasing(lengths, 8192, 256)
    assert lengths.sum() / ((len(starts) - 1) * 8192) >= 0.999


def test_no_pieces_need_no_bins() -> None:
    assert bins_of([], 8, 8) == []


@pytest.mark.parametrize(
    ("lengths", "capacity", "max_pieces", "message"),
    [
        ([9], 8, 8, r"lengths\[0\] = 9"),
        ([1, -1], 8, 8, r"lengths\[1\] = -1"),
        ([1], 0, 8, "positive"),
        ([1], 8, 0, "positive"),
    ],
)
def test_bad_arguments_are_refused(lengths: list[int], capacity: int, max_pieces: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bins_of(lengths, capacity, max_pieces)
