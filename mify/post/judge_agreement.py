"""How far judges agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with bootstrap intervals.

A table of grades has a row an item and a column a judge; NaN is a grade that is missing. All three statistics are 1
for perfect agreement and 0 for what chance gives; where all grades are alike, chance explains everything and they are
NaN, not 1.

Sources: Cohen, Educational and Psychological Measurement 20 (1960), weighted 1968; Fleiss, Psychological Bulletin 76
(1971); Krippendorff, Content Analysis, chapter 11, in the form with coincidences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]
RESAMPLES = 1000


def cohens_kappa(x: ArrayLike, y: ArrayLike, weights: Literal["none", "linear", "quadratic"] = "none") -> float:
    """Agreement of two judges on the items that both graded.

    Args:
        x, y: (N,) grades. weights: what a disagreement counts: all the same, its distance, its distance squared.

    Raises:
        ValueError: unequal lengths.
    """
    table = _table(np.stack(_same_length(x, y), axis=1))
    both = table[~np.isnan(table).any(1)]
    if not len(both):
        return float("nan")
    values = np.unique(both)
    rows, columns = np.searchsorted(values, both[:, 0]), np.searchsorted(values, both[:, 1])
    seen = np.zeros((len(values), len(values)))
    np.add.at(seen, (rows, columns), 1.0 / len(both))
    apart = np.abs(values[:, None] - values[None, :])
    cost = {"none": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    chance = float((cost * np.outer(seen.sum(1), seen.sum(0))).sum())
    return float("nan") if chance == 0 else 1.0 - float((cost * seen).sum()) / chance


def fleiss_kappa(table: ArrayLike) -> float:
    """Agreement of any number of judges on the items that all of them graded, grades as names.

    Args:
        table: (N, judges).
    """
    grades = _table(table)
    whole = grades[~np.isnan(grades).any(1)]
    judges = grades.shape[1]
    if not len(whole) or judges < 2:
        return float("nan")
    counts = np.stack([(whole == value).sum(1) for value in np.unique(whole)], axis=1).astype(float)
    agreed = ((counts**2).sum(1) - judges) / (judges * (judges - 1))
    chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return float("nan") if chance == 1 else (float(agreed.mean()) - chance) / (1.0 - chance)


def krippendorff_alpha(table: ArrayLike, level: Level = "ordinal") -> float:
    """Agreement of any number of judges, grades missing or not; items with fewer than two grades say nothing.

    Args:
        table: (N, judges). level: how far grades are apart: "nominal", "ordinal" (by the grades between), "interval".
    """
    values, counts = _counts(_table(table))
    return _alpha(values, counts, level)


def interval(
    table: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic over items (rows); (NaN, NaN) where none can be computed."""
    data = _table(table)
    generator = np.random.Generator(np.random.PCG64(seed))
    found = [statistic(data[generator.integers(0, len(data), len(data))]) for _ in range(resamples if len(data) else 0)]
    known = np.array([value for value in found if value == value])
    if len(known) < resamples / 2:  # most resamples hold one grade alone: there is no interval to speak of
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _alpha(values: NDArray[np.float64], counts: NDArray[np.float64], level: Level) -> float:
    graded = counts.sum(1)
    pairable = counts[graded >= 2]
    sizes = graded[graded >= 2]
    total = sizes.sum()
    if total < 2 or len(values) < 2:
        return float("nan")
    # Coincidences: each item's ordered pairs of grades, weighted by 1 / (its grades - 1).
    weighted = pairable / (sizes - 1)[:, None]
    coincidences = pairable.T @ weighted - np.diag(weighted.sum(0))
    frequency = coincidences.sum(1)
    apart = _apart(values, frequency, level)
    observed = float((coincidences * apart).sum()) / total
    expected = float((np.outer(frequency, frequency) * apart).sum()) / (total * (total - 1))
    return float("nan") if expected == 0 else 1.0 - observed / expected


def _apart(values: NDArray[np.float64], frequency: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """The squared distance of every two grades."""
    if level == "nominal":
        return (values[:, None] != values[None, :]).astype(np.float64)
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)
    # Grades between two, half of each end's included: a difference of running middles.
    middle = np.cumsum(frequency) - frequency / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


def _counts(grades: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.unique(grades[~np.isnan(grades)])
    return values, np.stack([(grades == value).sum(1) for value in values], axis=1).astype(np.float64) if len(
        values
    ) else np.zeros((len(grades), 0))


def _table(table: ArrayLike) -> NDArray[np.float64]:
    grades = np.asarray(table, np.float64)
    if grades.ndim != 2:
        raise ValueError(f"a table of grades has two dimensions, items and judges; this has {grades.ndim}")
    return grades


def _same_length(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"grades of two judges on the same items are asked for; the shapes are {first.shape}, {second.shape}"
        )
    return first, second
