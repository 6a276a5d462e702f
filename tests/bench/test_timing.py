"""The timing harness: interleaved, nothing counted that was not asked for; that of the GPU on a stand-in for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from mify.bench.timing import Timing, time_cpu, time_gpu


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


class _Event:
    """Reads the stand-in's clock, in ms as CUDA's events do."""

    def __init__(self, gpu: _Gpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = self.gpu.clock

    def elapsed_time(self, end: _Event) -> float:
        return (end.at - self.at) * 1e3


class _Graph:
    def __init__(self, gpu: _Gpu) -> None:
        self.gpu, self.cost = gpu, 0.0

    def replay(self) -> None:
        self.gpu.log.append("replay")
        self.gpu.clock += self.cost


class _Gpu:
    """What `time_gpu` asks of torch.cuda, with a clock that moves by what the calls say that they take."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.log: list[str] = []
        self.stream = SimpleNamespace(wait_stream=lambda _: None)

    def call(self, name: str, seconds: float, *, synchronizes: bool = False) -> Callable[[], None]:
        def run() -> None:
            if synchronizes and self.capturing:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.log.append(name)
            self.clock += seconds

        return run

    capturing = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def graph(captured: _Graph) -> Iterator[None]:
            before, self.capturing = self.clock, True
            try:
                yield
            finally:
                captured.cost, self.clock, self.capturing = self.clock - before, before, False

        namespace = SimpleNamespace(
            is_available=lambda: True, current_device=lambda: 0, synchronize=lambda: None, Stream=lambda: self.stream,
            device=lambda _: nullcontext(), stream=lambda _: nullcontext(), current_stream=lambda: self.stream,
            get_device_properties=lambda _: SimpleNamespace(L2_cache_size=1024), CUDAGraph=lambda: _Graph(self),
            Event=lambda **_: _Event(self), graph=graph,
        )  # fmt: skip
        patch.setattr(torch, "cuda", namespace)
        flushed = SimpleNamespace(sum=lambda: self.log.append("flush"))
        patch.setattr(torch, "zeros", lambda *_, **__: flushed)


def test_gpu_rounds_are_interleaved_flushed_and_divided_by_the_calls_of_a_stretch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = _Gpu()
    gpu.install(monkeypatch)
    one, two = gpu.call("a", 2e-6), [gpu.call("b", 4e-6), gpu.call("b", 6e-6)]
    times = time_gpu({"one": one, "two": two}, rounds=3, warmup=1)
    assert times["one"].seconds == pytest.approx([2e-6] * 3)
    assert times["two"].seconds == pytest.approx([5e-6] * 3)
    assert {t.how for t in times.values()} == {"cuda graph"}
    assert gpu.log[-12:] == ["flush", "replay"] * 6
    gpu.log.clear()
    time_gpu({"one": one}, rounds=2, flush_l2=False)
    assert "flush" not in gpu.log


def test_what_cannot_be_captured_is_timed_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = _Gpu()
    gpu.install(monkeypatch)
    times = time_gpu({"waits": gpu.call("w", 3e-6, synchronizes=True), "fine": gpu.call("f", 1e-6)}, rounds=2)
    assert (times["waits"].how, times["fine"].how) == ("cuda events", "cuda graph")
    assert times["waits"].median == pytest.approx(3e-6)
    with pytest.raises(ValueError, match="no call"):
        time_gpu({"nothing": []}, rounds=1)
