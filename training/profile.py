"""`--profile`: a torch trace of a few steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from .config import TrainConfig
from .parallel import World


class Stepper(Protocol):
    """What wants to know that a step is over."""

    def step(self) -> None: ...


class _Nothing:
    def step(self) -> None:
        """No profile was asked for."""


@contextmanager
def profiler(config: TrainConfig, world: World) -> Iterator[Stepper]:
    """Traces `logging.profile_steps` steps after the first ten into RUN/profile: a trace and a table of each rank."""
    steps = config.logging.profile_steps
    if not steps:
        yield _Nothing()
        return
    folder = config.run_folder / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def ready(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(folder / f"trace-rank{world.rank}.json"))
        order = "self_cuda_time_total" if world.device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=60)
        (folder / f"table-rank{world.rank}.txt").write_text(table, encoding="utf-8")

    schedule = torch.profiler.schedule(wait=9, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=ready, record_shapes=True
    ) as profile:
        yield profile
