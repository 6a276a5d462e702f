"""pass@k without bias, and confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
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
