"""Runs generated programs confined, many at a time, with verdicts that neither load nor the program can bend.

    verdicts = run_programs([Program("HumanEval/0", solution, tests), …])

A pool of warm workers (one a core) each holds one sandbox; a program is a fork inside it. What confines it stands in
`launch` and `inside.confine`, how a verdict is kept honest in `inside.worker` and `inside.apart`. A program that ran
out of time in the pool is run again alone before that counts, so a loaded machine does not change a score.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from mify.errors import MifyError
from mify.eval.launch import Mounts, SandboxKind, host_python, package_mounts, remedy, sandbox_kind
from mify.eval.programs import Form, Limits, Program, Verdict
from mify.eval.worker import Worker

__all__ = [
    "Form",
    "Limits",
    "Pool",
    "Program",
    "SandboxKind",
    "Verdict",
    "Worker",
    "run_programs",
    "sandbox_kind",
    "usable_cpus",
]


def run_programs(
    programs: Sequence[Program],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    form: Form = "auto",
    kind: SandboxKind | None = None,
    packages: tuple[str, ...] = (),
    allow_unconfined: bool = False,
    python: str | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """Runs every program and returns the verdicts in the same order.

    Args:
        workers: sandboxes at a time; as many as there are cores for this process by default.
        limits: what each program may use.
        form: see `Worker.run`.
        kind: how to confine; the strongest that works here by default.
        packages: names of installed packages the programs may import (the standard library is always there).
        allow_unconfined: run without a sandbox where none works. Generated code can then do what the user can.
        python: the interpreter that runs the programs; the one running now, by default.
        on_verdict: called with each final verdict as it comes, from one thread at a time.

    Raises:
        MifyError: no sandbox works here and the user did not insist, or a package is missing.
    """
    if not programs:
        return []
    pool = Pool(
        min(workers or usable_cpus(), len(programs)),
        limits=limits,
        form=form,
        kind=kind,
        packages=packages,
        allow_unconfined=allow_unconfined,
        python=python,
    )
    with pool:
        return pool.run(programs, on_verdict)


class Pool:
    """Warm workers that stay for many calls of `run`: what a training run keeps open. See `run_programs`."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        limits: Limits | None = None,
        form: Form = "auto",
        kind: SandboxKind | None = None,
        packages: tuple[str, ...] = (),
        allow_unconfined: bool = False,
        python: str | None = None,
    ) -> None:
        kind = kind or sandbox_kind()
        if not kind.confined and not allow_unconfined:
            raise MifyError(
                f"generated programs are not run here, for nothing would confine them: {kind.reason}", remedy()
            )
        mounts, limits = Mounts(python or host_python(), package_mounts(packages)), limits or Limits()
        self._form = form
        self._new = partial(Worker, kind, mounts, limits)
        # A worker starts with the first program that it gets, and bubblewrap ends it with the *thread* that started it
        # (PR_SET_PDEATHSIG), so the threads stay as long as the pool.
        self._workers = [self._new(index=index) for index in range(workers or usable_cpus())]
        self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="sandbox")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def run(self, programs: Sequence[Program], on_verdict: Callable[[Verdict], None] | None = None) -> list[Verdict]:
        """The verdicts of all programs, in their order. Not for two threads at once."""
        if not programs:
            return []
        verdicts: list[Verdict | None] = [None] * len(programs)
        again: list[int] = []
        lock = threading.Lock()
        stop = threading.Event()
        positions = iter(range(len(programs)))

        def settle(position: int, verdict: Verdict) -> None:
            verdicts[position] = verdict
            if on_verdict is not None:
                on_verdict(verdict)

        def work(worker: Worker) -> None:
            while not stop.is_set():
                with lock:
                    position = next(positions, None)
                if position is None:
                    return
                verdict = worker.run(programs[position], self._form)
                with lock:
                    if verdict.status in ("timeout", "broke"):
                        again.append(position)
                    else:
                        settle(position, verdict)

        futures = [self._threads.submit(work, worker) for worker in self._workers[: len(programs)]]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            wait(futures)
            raise
        if again:
            with self._new() as worker:
                for position in sorted(again):
                    settle(position, replace(worker.run(programs[position], self._form), retried=True))
        return [verdict for verdict in verdicts if verdict is not None]


def usable_cpus() -> int:
    """Cores this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
