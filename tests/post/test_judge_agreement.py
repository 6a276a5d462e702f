"""Agreement statistics against published tables, other implementations and what holds for any grades."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.post.judge_agreement import cohens_kappa, fleiss_kappa, interval, krippendorff_alpha

X = float("nan")
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), C: four observers, twelve units, grades missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
    [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
]
# Fleiss (1971) in the form of its usual worked example: ten items, fourteen raters, counts of five grades.
RATERS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level: str, published: float) -> None:
    assert krippendorff_alpha(np.array(OBSERVERS).T, level) == pytest.approx(published, abs=5e-4)  # type: ignore[arg-type]


def test_fleiss_worked_example() -> None:
    table = [[grade for grade, count in enumerate(row) for _ in range(count)] for row in RATERS]
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)


def test_cohens_worked_example() -> None:
    x, y = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohens_kappa(x, y) == pytest.approx(0.4)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohens_kappa_is_scikit_learns(weights: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(7)
    for _ in range(20):
        x = generator.integers(1, 6, 60)
        y = np.clip(x + generator.integers(-1, 2, 60), 1, 5)
        theirs = metrics.cohen_kappa_score(x, y, weights=None if weights == "none" else weights)
        assert cohens_kappa(x, y, weights) == pytest.approx(theirs)  # type: ignore[arg-type]


def by_definition(table: np.ndarray, level: str) -> float:
    """Alpha as 1 - observed / expected disagreement over pairs of grades, the slow way."""
    rows = [[grade for grade in row if grade == grade] for row in table]
    rows = [row for row in rows if len(row) > 1]
    flat = sorted(grade for row in rows for grade in row)

    def apart(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(low <= grade <= high for grade in flat)
        return (between - (flat.count(low) + flat.count(high)) / 2) ** 2

    n = len(flat)

    def within(row: list[float]) -> float:
        return sum(apart(a, b) for i, a in enumerate(row) for j, b in enumerate(row) if i != j)

    observed = sum(within(row) / (len(row) - 1) for row in rows)
    expected = within(flat)
    return 1 - (observed / n) / (expected / (n * (n - 1))) if expected else math.nan


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([1, 2, 3, 5, X]), min_size=3, max_size=3), min_size=1, max_size=12),
    st.sampled_from(["nominal", "ordinal", "interval"]),
)
def test_alpha_is_its_definition(rows: list[list[float]], level: str) -> None:
    table = np.array(rows)
    ours, slow = krippendorff_alpha(table, level), by_definition(table, level)  # type: ignore[arg-type]
    assert ours == pytest.approx(slow, nan_ok=True)


def test_full_agreement_chance_and_one_grade_alone() -> None:
    generator = np.random.default_rng(0)
    grades = generator.integers(1, 6, (500, 1)).repeat(3, axis=1)
    assert krippendorff_alpha(grades) == fleiss_kappa(grades) == cohens_kappa(grades[:, 0], grades[:, 1]) == 1.0
    noise = generator.integers(1, 6, (4000, 3))
    assert abs(krippendorff_alpha(noise)) < 0.03
    assert abs(fleiss_kappa(noise)) < 0.03
    alike = np.full((10, 2), 4)
    for value in (krippendorff_alpha(alike), fleiss_kappa(alike), cohens_kappa(alike[:, 0], alike[:, 1])):
        assert math.isnan(value)
    assert math.isnan(krippendorff_alpha(np.full((3, 2), X)))
    assert all(map(math.isnan, interval(alike, fleiss_kappa, resamples=50)))


def test_the_interval_covers_what_is_true() -> None:
    """Two judges who agree beyond chance by a known amount: about 95 of 100 intervals hold it."""
    truth, held = 0.6, 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        x = generator.integers(0, 2, 150)
        y = np.where(generator.random(150) < truth, x, generator.integers(0, 2, 150))
        low, high = interval(np.stack([x, y], 1), lambda t: cohens_kappa(t[:, 0], t[:, 1]), resamples=200, seed=seed)
        held += low <= truth <= high
    assert 51 <= held <= 60


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        krippendorff_alpha([1, 2, 3])
    with pytest.raises(ValueError, match="the shapes are"):
        cohens_kappa([1, 2], [1])
