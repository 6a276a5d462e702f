"""The CPU timing harness: interleaved, the minimum of the rounds, nothing counted that was not asked for."""

from __future__ import annotations

import time

import pytest

from mify.bench.timing import Timing, time_cpu


def test_rounds_are_interleaved_and_turn_by_one() -> None:
    calls: list[str] = []
    timings = time_cpu({name: (lambda name=name: calls.append(name)) for name in "abc"}, rounds=3, warmup=0)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_cpu_time_does_not_count_sleep_and_wall_time_does() -> None:
    work = {"sleep": lambda: time.sleep(0.02)}
    assert time_cpu(work, rounds=1, warmup=0)["sleep"].best < 0.01
    assert time_cpu(work, rounds=1, warmup=0, clock="wall")["sleep"].best >= 0.02


def test_short_work_is_repeated_and_divided() -> None:
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        sum(range(2000))

    timing = time_cpu({"work": work}, rounds=2, min_seconds=0.01)["work"]
    assert count > 20
    assert 0 < timing.best < 0.005


def test_setup_runs_before_each_stretch_and_is_not_timed() -> None:
    order: list[str] = []
    time_cpu({"a": lambda: order.append("a")}, rounds=2, warmup=0, setup=lambda: order.append("setup"))
    assert order == ["setup", "a", "setup", "a"]


def test_statistics() -> None:
    timing = Timing((3.0, 2.0, 4.0))
    assert (timing.best, timing.median, timing.spread) == (2.0, 3.0, 1.0)


def test_bad_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds"):
        time_cpu({"a": lambda: None}, rounds=0)
