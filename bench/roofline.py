"""What this device reaches at best, measured in this run, and how far an op is from it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Writes the roofline as PNG: achieved FLOP/s over FLOP per byte. False where matplotlib is not installed.

    Ops without matrix products stand at the left edge, at the height that their bandwidth allows there.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from mify.files import atomic_file

    edge = 0.25  # FLOP per byte at which ops without products are drawn
    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=110)
    ridge = peaks.flops / peaks.bandwidth
    ends = [edge / 2, ridge, max(ridge * 20, *(2 * point.cost.intensity for point in points), 1.0)]
    axes.plot(ends, [x * peaks.bandwidth if x < ridge else peaks.flops for x in ends], color="0.2", linewidth=1.5)
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.seconds):
        x = max(point.cost.intensity, edge)
        rate = point.cost.bytes * x if point.cost.intensity < edge else point.cost.flops
        reached = rate / point.seconds
        axes.plot([x], [reached], "o", markersize=5)
        # Names of points that lie close together are set below each other.
        crowd = sum(abs(math.log(x / a)) < 1.5 and abs(math.log(reached / b)) < 0.12 for a, b in taken)
        taken.append((x, reached))
        right = x > ends[2] / 30
        axes.annotate(
            point.name,
            (x, reached),
            textcoords="offset points",
            xytext=(-6 if right else 6, -3 - 8 * crowd),
            fontsize=7,
            horizontalalignment="right" if right else "left",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte (ops without products at the left edge)")
    axes.set_ylabel("FLOP/s")
    axes.set_title(
        f"{title}: {peaks.bandwidth / 1e9:,.0f} GB/s and {peaks.flops / 1e12:,.2f} TFLOP/s measured", fontsize=10
    )
    axes.grid(True, which="both", color="0.9", linewidth=0.5)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return True
