"""pass@k and intervals against enumeration and published values."""

from __future__ import annotations

import itertools
import math

import pytest

from mify.eval.statistics import bootstrap_interval, paired_difference, pass_at_k


@pytest.mark.parametrize(
    ("samples", "passed", "k"), [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(samples: int, passed: int, k: int) -> None:
    outcomes = [True] * passed + [False] * (samples - passed)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="it must lie between"):
        pass_at_k(samples, passed, k)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_bootstrap_is_the_same_every_time_and_holds_the_mean() -> None:
    values = [0.0, 1.0, 0.5, 0.25]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    low, high = bootstrap_interval(values)
    assert low < sum(values) / 4 < high
    assert bootstrap_interval([0.5] * 5) == (0.5, 0.5)
    with pytest.raises(ValueError, match="empty"):
        bootstrap_interval([])


def test_an_interval_where_all_came_out_alike() -> None:
    """Wilson's interval, from its formula with p = 0: centre z²/2n and half-width the same, over 1 + z²/n."""
    z, n = 1.959963984540054, 164
    centre = (z * z / (2 * n)) / (1 + z * z / n)
    assert bootstrap_interval([0.0] * n) == pytest.approx((0.0, 2 * centre))
    assert bootstrap_interval([1.0] * n) == pytest.approx((1 - 2 * centre, 1.0))


def test_paired_runs() -> None:
    before, after = [1.0] * 8 + [0.0] * 92, [1.0] * 6 + [0.0] * 93 + [1.0]
    found = paired_difference(before, after)
    assert (found.won, found.lost) == (1, 2)
    assert found.mean == pytest.approx(-0.01)
    assert found.low < -0.01 < found.high
    alone = [bootstrap_interval(values) for values in (before, after)]
    assert found.high - found.low < 0.7 * max(high - low for low, high in alone), "hard problems drop out"
    assert found.p == 1.0
    assert paired_difference([0.0] * 6, [1.0] * 6).p == 2 / 2**6
    assert paired_difference([0.25, 0.5, 0.5], [0.5, 0.5, 0.0]).mean == pytest.approx(-1 / 12)
    same = paired_difference(before, before)
    assert (same.mean, same.won, same.lost, same.p) == (0, 0, 0, 1)
    assert same.high == -same.low == pytest.approx(0.037, abs=1e-3), "no change on 100 items is no proof of none"
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 0.0])
