"""pass@k without bias, and confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod
from statistics import NormalDist

import numpy as np


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of k samples passes, estimated without bias from `passed` of `samples`.

    1 - C(n - c, k) / C(n, k), as a product that neither over- nor underflows (Chen et al., arXiv 2107.03374, section
    2.1).

    Raises:
        ValueError: not 0 <= passed <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= passed <= samples:
        raise ValueError(f"passed is {passed}; it must lie between 0 and samples = {samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; it must lie between 1 and samples = {samples}")
    if samples - passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over items (Efron 1979). Same values and seed, same interval.

    Where all items came out alike, all 0 or all 1, resampling cannot show how little that says: then it is the Wilson
    interval (Wilson 1927), which for 0 of n reaches up to z² / (n + z²).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("values is empty")
    if data[0] in (0.0, 1.0) and (data == data[0]).all():
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        reach = z * z / (data.size + z * z)
        return (0.0, reach) if data[0] == 0.0 else (1.0 - reach, 1.0)
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    block = max(1, 4_000_000 // data.size)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = data[generator.integers(0, data.size, (rows, data.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Paired:
    """What changed between two runs over the same items.

    Args:
        mean: of after - before over the items. low, high: its 95% interval.
        won, lost: items that rose and that fell.
        p: the chance of a split of won and lost at least as uneven if neither were likelier (the exact form of
            McNemar's test, 1947; the sign test where items have more than two values).
    """

    mean: float
    low: float
    high: float
    won: int
    lost: int
    p: float


def paired_difference(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Paired:
    """Compares two runs item by item. What makes an item hard is in both of its values and drops out, so the interval
    (percentile bootstrap over items) is narrower than those of the two means suggest.

    Where no item changed, resampling cannot show how little that says: then changes on up to z² / (n + z²) of the items
    are within the interval, both ways, as Wilson's has it for 0 of n.

    Args:
        before, after: a value for each item, between 0 and 1, the same items in the same order.

    Raises:
        ValueError: none, or not as many.
    """
    change = [b - a for a, b in zip(before, after, strict=True)]
    won, lost = sum(value > 0 for value in change), sum(value < 0 for value in change)
    low, high = bootstrap_interval(change, seed=seed)
    if won == lost == 0:
        low = -high
    split = won + lost
    tail = sum(comb(split, count) for count in range(min(won, lost) + 1)) / 2**split
    return Paired(sum(change) / len(change), low, high, won, lost, min(1.0, 2 * tail))
