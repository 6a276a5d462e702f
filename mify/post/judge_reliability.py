"""How far a judge can be trusted: its scores against what execution found, with bootstrap intervals.

A score between 0 and 1 is read in two ways: as an order (AUC: the chance that a program which passes its tests gets a
higher score than one which fails, ties half) and as a probability (expected calibration error, Brier's score). At a
threshold it is a verdict: precision and recall of "passes".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mify.post.judge_agreement import RESAMPLES

BINS = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its 95% interval; NaN where it is not defined (no item of a kind, say)."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """NaN as None: JSON has none."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Reliability:
    """What was measured.

    Args:
        items: scored programs with a verdict. passed: those whose tests passed.
        figures: "auc", "precision", "recall", "accuracy", "ece", "brier", and "base": the share that passed.
        table: for each bin of scores with items: (low, high, items, mean score, share that passed).
    """

    items: int
    passed: int
    figures: dict[str, Figure]
    table: tuple[tuple[float, float, int, float, float], ...]

    @property
    def better_than_chance(self) -> bool:
        """Whether the AUC's interval lies above 0.5."""
        return self.figures["auc"].low > 0.5

    def to_dict(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "passed": self.passed,
            "better_than_chance": self.better_than_chance,
            **{name: figure.to_dict() for name, figure in self.figures.items()},
            "table": [list(row) for row in self.table],
        }


def reliability(
    scores: ArrayLike, passed: ArrayLike, threshold: float = 0.5, *, resamples: int = RESAMPLES, seed: int = 0
) -> Reliability:
    """Measures scores against verdicts.

    Args:
        scores: (N,) from 0 to 1. passed: (N,) bool. threshold: a score from it on says "passes".

    Raises:
        ValueError: unequal lengths, or a score out of range.
    """
    score, truth = np.asarray(scores, np.float64), np.asarray(passed, bool)
    if score.ndim != 1 or score.shape != truth.shape:
        raise ValueError(f"a score for each verdict is asked for; the shapes are {score.shape} and {truth.shape}")
    if score.size and not (score.min() >= 0 and score.max() <= 1):
        raise ValueError("a score lies outside 0 to 1")
    measures: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], float]] = {
        "auc": auc,
        "precision": lambda s, t: _share(t[s >= threshold]),
        "recall": lambda s, t: _share((s >= threshold)[t]),
        "accuracy": lambda s, t: _share((s >= threshold) == t),
        "ece": expected_calibration_error,
        "brier": lambda s, t: _share((s - t) ** 2),
        "base": lambda s, t: _share(t),
    }
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = [generator.integers(0, score.size, score.size) for _ in range(resamples if score.size else 0)]
    figures = {}
    for name, measure in measures.items():
        resampled = np.array([measure(score[rows], truth[rows]) for rows in drawn])
        known = resampled[~np.isnan(resampled)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) > resamples / 2 else (np.nan, np.nan)
        figures[name] = Figure(measure(score, truth), float(low), float(high))
    return Reliability(int(score.size), int(truth.sum()), figures, tuple(_bins(score, truth)))


def auc(scores: NDArray[np.float64], passed: NDArray[np.bool_]) -> float:
    """Mann and Whitney's statistic over pairs: P(score of a passed one > of a failed one) + half of P(equal).

    NaN where all passed or none did.
    """
    ones, zeros = int(passed.sum()), int((~passed).sum())
    if not ones or not zeros:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal scores
    return float((ranks[place][passed].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def expected_calibration_error(scores: NDArray[np.float64], passed: NDArray[np.bool_]) -> float:
    """The mean over items of |mean score − share that passed| of their bin; ten bins of equal width (Naeini 2015)."""
    if not scores.size:
        return float("nan")
    return float(sum(size * abs(mean - share) for _, _, size, mean, share in _bins(scores, passed)) / scores.size)


def _bins(scores: NDArray[np.float64], passed: NDArray[np.bool_]) -> list[tuple[float, float, int, float, float]]:
    # A score of exactly 1 belongs to the last bin.
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        low, high = float(number) / BINS, float(number + 1) / BINS
        rows.append((low, high, int(inside.sum()), float(scores[inside].mean()), float(passed[inside].mean())))
    return rows


def _share(values: NDArray) -> float:
    return float(values.mean()) if values.size else float("nan")
