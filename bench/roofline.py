"""What this device reaches at best, measured in this run, and how far an op is from it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mify.bench.timing import random_like_activations, time_cpu, time_gpu
from mify.kernels.cost import Cost


@dataclass(frozen=True, slots=True)
class Peaks:
    """What this device reached at best, of several rounds.

    Args:
        bandwidth: bytes/s of a copy, read and written. flops: FLOP/s of a square product in `dtype`.
        read: bytes/s of a sum, which reads alone and is faster; 0 where it was not measured.
    """

    bandwidth: float
    flops: float
    dtype: str
    read: float = 0.0

    def memory_seconds(self, cost: Cost) -> float:
        """The least time for the bytes of `cost`: its reads at the rate of the sum, its writes at what a copy takes
        beyond its own reads. So an op that only reads cannot beat the limit, nor does one that copies fall short of it.
        """
        read = max(self.read, self.bandwidth)
        return cost.read / read + cost.written * (2 / self.bandwidth - 1 / read)

    def seconds(self, cost: Cost) -> float:
        """The least time that `cost` could take here."""
        return max(cost.flops / self.flops, self.memory_seconds(cost))

    def describe(self, cost: Cost) -> str:
        """Which of the limits binds `cost`, in words."""
        if cost.flops / self.flops > self.memory_seconds(cost):
            return f"{self.flops / 1e12:,.3g} TFLOP/s in {self.dtype}, measured in this run"
        rate = cost.bytes / self.memory_seconds(cost)
        return f"{rate / 1e9:,.0f} GB/s for its reads and writes, measured in this run"

    def percent(self, cost: Cost, seconds: float) -> float:
        """How much of the limit was reached. Above 100 something was mismeasured."""
        return 100.0 * self.seconds(cost) / seconds


def measure_peaks(device: str, dtype_name: str, rounds: int = 5) -> Peaks:
    """Times a large copy, a large sum and a large product. On a CPU one thread's figures, beyond its caches."""
    import torch

    dtype = getattr(torch, dtype_name)
    on_gpu = device == "cuda"
    elements = (1 << 30) // dtype.itemsize if on_gpu else (1 << 26) // dtype.itemsize
    side = 8192 if on_gpu else 1024
    source = random_like_activations(elements, dtype=dtype, device=device)
    target = torch.empty_like(source)
    a, b = (random_like_activations(side, side, dtype=dtype, device=device, seed=i) for i in (1, 2))
    summed = source.view(torch.float32)
    work = {"copy": lambda: target.copy_(source), "sum": lambda: summed.sum(), "product": lambda: torch.mm(a, b)}
    times = time_gpu(work, rounds=rounds, flush_l2=False) if on_gpu else time_cpu(work, rounds=rounds)
    size = elements * dtype.itemsize
    return Peaks(
        2 * size / times["copy"].best, 2 * side**3 / times["product"].best, dtype_name, size / times["sum"].best
    )


@dataclass(frozen=True, slots=True)
class Point:
    """One op on the roofline: FLOP per byte, and FLOP/s reached (or, for ops without products, bytes/s)."""

    name: str
    cost: Cost
    seconds: float


def draw(path: str | os.PathLike[str], peaks: Peaks, points: Sequence[Point], title: str) -> bool:
    """Writes the roofline as PNG. False where matplotlib is not installed.

    Left the ops with matrix products, achieved FLOP/s over FLOP per byte under the roof; right every op as a bar, how
    much of its limit it reached (ops that only move bytes have no place on the left).
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from mify.files import atomic_file

    ordered = sorted(points, key=lambda point: -peaks.percent(point.cost, point.seconds))
    figure, (roof, bars) = pyplot.subplots(
        1, 2, figsize=(13, max(5.0, 1.5 + 0.22 * len(points))), dpi=110, width_ratios=(1.2, 1)
    )
    _draw_roof(roof, peaks, ordered)
    _draw_bars(bars, peaks, ordered)
    figure.suptitle(
        f"{title}: copy {peaks.bandwidth / 1e9:,.0f} GB/s, read {max(peaks.read, peaks.bandwidth) / 1e9:,.0f} GB/s, "
        f"{peaks.flops / 1e12:,.2f} TFLOP/s in {peaks.dtype}, measured in the same run",
        fontsize=10,
    )
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return True


def _draw_roof(axes: Any, peaks: Peaks, points: Sequence[Point]) -> None:
    """Points are numbered as the bars are: names would cover each other."""
    computing = [(number, point) for number, point in enumerate(points, 1) if point.cost.flops]
    slope = max(peaks.read, peaks.bandwidth)
    ridge = peaks.flops / slope
    intensities = [ridge, *(point.cost.intensity for _, point in computing)]
    ends = [min(intensities) / 3, ridge, max(intensities) * 3]
    axes.plot(ends, [x * slope if x < ridge else peaks.flops for x in ends], color="0.2", linewidth=1.5)
    taken: list[tuple[float, float]] = []
    for number, point in computing:
        x, reached = point.cost.intensity, point.cost.flops / point.seconds
        crowd = sum(abs(math.log(x / a)) < 0.35 and abs(math.log(reached / b)) < 0.08 for a, b in taken)
        taken.append((x, reached))
        axes.plot([x], [reached], "o", markersize=5, color="tab:blue")
        axes.annotate(str(number), (x, reached), textcoords="offset points", xytext=(5 + 12 * crowd, -3), fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("FLOP/s")
    axes.set_title("ops with matrix products, numbered as on the right", fontsize=9)
    axes.grid(True, which="both", color="0.9", linewidth=0.5)


def _draw_bars(axes: Any, peaks: Peaks, points: Sequence[Point]) -> None:
    shares = [peaks.percent(point.cost, point.seconds) for point in points]
    colours = ["tab:blue" if point.cost.flops else "tab:orange" for point in points]
    places = range(len(points), 0, -1)
    axes.barh(places, shares, color=colours, height=0.7)
    for at, share in zip(places, shares, strict=True):
        axes.text(share + 1, at, f"{share:.0f}%", va="center", fontsize=7)
    axes.axvline(100, color="0.2", linewidth=1)
    axes.set_yticks(places, [f"{point.name}  {number}" for number, point in enumerate(points, 1)], fontsize=7)
    axes.set_xlim(0, max(112.0, *(share + 12 for share in shares)))
    axes.set_ylim(0.3, len(points) + 0.7)
    axes.set_xlabel("% of its limit (blue: with matrix products, orange: moves bytes)")
    axes.set_title("all ops", fontsize=9)
