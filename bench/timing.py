"""One timing harness for every suite: interleaved rounds, on the same inputs, in one process.

CPU: the minimum over rounds of CPU time, since on a shared machine noise only ever adds.
GPU: the median over rounds of event time, each call with a cold L2 (a flush before it, or buffers that rotate).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call, one entry a round; `how` is the clock: "cpu", "wall", "cuda graph" or "cuda events"."""

    seconds: tuple[float, ...]
    how: str = "cpu"

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(max − min) / min over the rounds: how noisy the machine was."""
        return (max(self.seconds) - self.best) / self.best if self.best > 0 else 0.0


def time_cpu(
    implementations: Mapping[str, Work],
    *,
    rounds: int = 5,
    warmup: int = 1,
    min_seconds: float = 0.05,
    clock: Literal["cpu", "wall"] = "cpu",
    setup: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Times each implementation once a round; the order turns by one from round to round.

    Args:
        implementations: name → a call that does the whole work.
        warmup: calls of each before the first round (0 for work of many seconds).
        min_seconds: short work is repeated within a round until this much time has passed.
        clock: "cpu" counts the CPU time of all threads of this process (not of its children), "wall" the wall clock.
        setup: called before each timed stretch, untimed (to empty a cache, say).
    Returns:
        name → `Timing` in seconds per call, in the given order.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    now = time.process_time if clock == "cpu" else time.perf_counter
    repeats: dict[str, int] = {}
    for name, work in implementations.items():
        for _ in range(warmup):
            work()
        repeats[name] = 1
        if warmup:
            start = now()
            work()
            repeats[name] = max(1, int(min_seconds / max(now() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    names = list(implementations)
    with _collector_off():
        for round_number in range(rounds):
            turn = round_number % len(names)
            for name in names[turn:] + names[:turn]:
                if setup is not None:
                    setup()
                work, count = implementations[name], repeats[name]
                start = now()
                for _ in range(count):
                    work()
                seconds[name].append((now() - start) / count)
    return {name: Timing(tuple(values), clock) for name, values in seconds.items()}


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def time_gpu(
    implementations: Mapping[str, Work | Sequence[Work]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    graph: bool = True,
    flush_l2: bool = True,
    device: int | None = None,
) -> dict[str, Timing]:
    """GPU seconds per call by CUDA events, interleaved, L2 cold, Python's launch cost excluded by CUDA graphs.

    Args:
        implementations: name → one call, or a sequence of calls that do the same work on buffers of their own. That
            is timed as a whole and divided by its length: with more buffers than L2 holds every call finds it cold, and
            a kernel of a few µs is not drowned in the cost of an event.
        graph: replay a captured CUDA graph; a call that cannot be captured (it synchronizes) is timed eagerly.
        flush_l2: read a buffer of four times L2 before each timed stretch (needless for rotating buffers). Read, since
            what a flush writes would still be on its way to memory while the stretch is timed.
    """
    import torch

    cuda: Any = torch.cuda  # parts of torch.cuda carry no types
    if not cuda.is_available():
        raise RuntimeError("time_gpu needs a CUDA GPU")
    device = cuda.current_device() if device is None else device
    with cuda.device(device):
        scratch = torch.zeros(l2_bytes(device), dtype=torch.float32, device=f"cuda:{device}") if flush_l2 else None
        stretches: dict[str, tuple[Work, int, str]] = {}
        for name, works in implementations.items():
            calls = [works] if callable(works) else list(works)
            if not calls:
                raise ValueError(f"{name!r} has no call to time")
            for _ in range(warmup):
                for call in calls:
                    call()
            cuda.synchronize()
            replay = _captured(calls) if graph else None
            how = "cuda graph" if replay else "cuda events"
            stretches[name] = (replay or _sequence(calls), len(calls), how)
        seconds: dict[str, list[float]] = {name: [] for name in stretches}
        names = list(stretches)
        with _collector_off():
            for round_number in range(rounds):
                turn = round_number % len(names)
                order = names[turn:] + names[:turn]
                events = {name: (cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for name in order}
                for name in order:
                    if scratch is not None:
                        scratch.sum()
                    begin, end = events[name]
                    begin.record()
                    stretches[name][0]()
                    end.record()
                cuda.synchronize()
                for name, (begin, end) in events.items():
                    seconds[name].append(begin.elapsed_time(end) * 1e-3 / stretches[name][1])
    return {name: Timing(tuple(values), stretches[name][2]) for name, values in seconds.items()}


def l2_bytes(device: int | None = None) -> int:
    """The size of a GPU's second-level cache; 64 MiB where torch does not say."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if device is None else device)
    return getattr(properties, "L2_cache_size", 0) or 64 * 2**20


def _sequence(calls: Sequence[Work]) -> Work:
    def run() -> None:
        for call in calls:
            call()

    return run


def _captured(calls: Sequence[Work]) -> Work | None:
    """The calls as one CUDA graph, or None where they cannot be captured."""
    import torch

    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        _sequence(calls)()
    cuda.current_stream().wait_stream(stream)
    graph = cuda.CUDAGraph()
    try:
        with cuda.graph(graph):
            _sequence(calls)()
    except RuntimeError:
        # Work that synchronizes or allocates outside the pool cannot be captured: it is timed eagerly instead.
        cuda.synchronize()
        return None
    return graph.replay


def random_like_activations(*shape: int, dtype: torch.dtype, device: Any, seed: int = 0) -> torch.Tensor:
    """Random normal data (zeros or constants draw less power and run faster than real data)."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, dtype=torch.float32, device=device, generator=generator).to(dtype)
