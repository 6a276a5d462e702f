"""The roofline: what the measured peaks say of an op that reads, one that copies and one that computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify.bench.roofline import Peaks, Point, draw, measure_peaks
from mify.kernels.cost import Cost

PEAKS = Peaks(bandwidth=4e12, flops=800e12, dtype="bfloat16", read=4.5e12)


def test_a_copy_at_the_copys_rate_and_a_sum_at_the_sums_rate_are_the_limit() -> None:
    assert PEAKS.percent(Cost(0, 10**9, 10**9), 2e9 / 4e12) == pytest.approx(100)
    assert PEAKS.percent(Cost(0, 10**9, 0), 1e9 / 4.5e12) == pytest.approx(100)
    between = PEAKS.memory_seconds(Cost(0, 2 * 10**9, 10**9))
    assert 3e9 / 4.5e12 < between < 3e9 / 4e12
    assert "GB/s" in PEAKS.describe(Cost(0, 1, 1))


def test_what_computes_is_limited_by_the_product() -> None:
    assert PEAKS.seconds(Cost(8 * 10**14, 1, 1)) == pytest.approx(1)
    assert "800 TFLOP/s" in PEAKS.describe(Cost(8 * 10**14, 1, 1))


def test_without_a_measured_read_rate_the_copys_holds() -> None:
    peaks = Peaks(4e12, 800e12, "bfloat16")
    assert peaks.memory_seconds(Cost(0, 3, 1)) == pytest.approx(1e-12)


def test_a_cpu_has_peaks() -> None:
    peaks = measure_peaks("cpu", "float32", rounds=1)
    assert 1e8 < peaks.bandwidth < 1e12
    assert 1e8 < peaks.read < 1e12
    assert 1e9 < peaks.flops < 1e14


def test_every_point_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [Point(f"op {i}", Cost(i * 10**9, 10**7, 10**7), 1e-3) for i in range(30)]
    assert draw(tmp_path / "a.png", PEAKS, points, "title")
    assert (tmp_path / "a.png").stat().st_size > 10_000
