"""Runs generated programs confined, many at a time, with verdicts that neither load nor the program can bend.

    verdicts = run_programs([Program("HumanEval/0", source), ...])

A pool of warm workers (one a core) each holds one sandbox; a program is a fork inside it. What confines it, and how a
verdict is kept honest, stands in `sandbox_launch` and `sandbox_worker`. A program that ran out of time in the pool is run
again alone before that counts, so a loaded machine does not change a score.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mify.errors import MifyError
from mify.eval.sandbox_launch import Mounts, SandboxKind, host_python, package_mounts, remedy, sandbox_kind, start

__all__ = ["Limits", "Program", "SandboxKind", "Verdict", "Worker", "run_programs", "sandbox_kind", "usable_cpus"]

# Modules that benchmark programs import most: loaded once per worker, free in every fork.
PRELOAD = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq", "itertools", "json",
    "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Args:
        wall_s: seconds by the clock; over it, the program is run once more alone.
        cpu_s: CPU seconds of each process, rounded up to whole ones.
        memory_bytes: address space of each process.
        processes: processes and threads of the program together.
        output_bytes: bytes on stdout and stderr together.
        file_bytes: size of one file.
        scratch_bytes: size of the private /tmp.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20
    scratch_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """One program with its tests at the end; it passes when it runs to its last line without an exception."""

    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one program ended.

    status: "passed"; "failed" (an exception, named in `detail`); "exited" (left before its tests ended); "timeout"; "memory";
    "output" (too much of it); "crashed" (a signal); "forged" (wrote to the verdict's pipe); "broke" (took its worker down).
    """

    id: str
    status: str
    detail: str = ""
    output: str = field(default="", repr=False)
    seconds: float = 0.0
    retried: bool = False

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Worker:
    """One sandbox with a warm interpreter in it; not for use by two threads at once."""

    def __init__(
        self, kind: SandboxKind, mounts: Mounts, limits: Limits, *, index: int = 0, preload: tuple[str, ...] = PRELOAD
    ) -> None:
        self._kind, self._mounts, self._limits, self._preload = kind, mounts, limits, preload
        # A uid of its own for every worker of every process, among those no distribution gives to accounts.
        self._job_uid = 20000 + os.getpid() % 600 * 64 + index % 64
        self._root = tempfile.mkdtemp(prefix="mify-sandbox-")
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program) -> Verdict:
        """Runs one program. A worker that the program took down is replaced at the next call.

        Raises:
            MifyError: the sandbox does not start.
        """
        if self._process is None:
            self._start()
        message = {"source": program.source, "limits": asdict(self._limits)}
        started = time.monotonic()
        # The worker holds the limit itself; this one holds where the program stopped or killed the worker.
        answer = self._exchange(message, self._limits.wall_s + 15)
        if answer is None:
            self._kill()
            seconds = round(time.monotonic() - started, 4)
            return Verdict(
                program.id, "broke", "the worker ended or did not answer while this program ran", "", seconds
            )
        return Verdict(program.id, answer["status"], answer["detail"], answer["output"], answer["seconds"])

    def close(self) -> None:
        self._kill()
        shutil.rmtree(self._root, ignore_errors=True)

    def _start(self) -> None:
        self._process = start(
            self._kind, self._mounts, self._job_uid, self._limits.scratch_bytes, self._root, self._preload
        )
        self.starts += 1
        ready = self._read(30.0)
        if ready is None or not ready.get("ready"):
            self._process.kill()
            _, errors = self._process.communicate()
            self._process = None
            text = errors.decode("utf-8", "replace").strip() or "it ended without a word"
            raise MifyError(f"the sandbox ({self._kind.name}) does not start:\n{text}", remedy())

    def _kill(self) -> None:
        if self._process is None:
            return
        # Killing bwrap or unshare ends the PID namespace (--die-with-parent, --kill-child), and with it all inside.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process = None

    def _exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdin is not None
        body = json.dumps(message).encode("utf-8")
        try:
            self._process.stdin.write(struct.pack(">I", len(body)) + body)
            self._process.stdin.flush()
        except (BrokenPipeError, ConnectionResetError):
            # The last program left something that could not be removed, so its worker retired: a new one takes this.
            self._kill()
            self._start()
            return self._exchange(message, timeout)
        return self._read(timeout)

    def _read(self, timeout: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout
        header = self._read_exactly(4, deadline)
        if header is None:
            return None
        body = self._read_exactly(struct.unpack(">I", header)[0], deadline)
        return None if body is None else json.loads(body)

    def _read_exactly(self, count: int, deadline: float) -> bytes | None:
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(descriptor, count - len(data)) if ready else b""
            if not piece:
                return None
            data += piece
        return data


def run_programs(
    programs: Sequence[Program],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
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
    limits = limits or Limits()
    kind = kind or sandbox_kind()
    if not kind.confined and not allow_unconfined:
        raise MifyError(f"generated programs are not run here, for nothing would confine them: {kind.reason}", remedy())
    mounts = Mounts(python or host_python(), package_mounts(packages))
    preload = (*PRELOAD, *packages)
    verdicts: list[Verdict | None] = [None] * len(programs)
    again: list[int] = []
    lock = threading.Lock()
    positions = iter(range(len(programs)))
    problems: list[BaseException] = []

    def settle(position: int, verdict: Verdict) -> None:
        verdicts[position] = verdict
        if on_verdict is not None:
            on_verdict(verdict)

    def work(index: int) -> None:
        try:
            with Worker(kind, mounts, limits, index=index, preload=preload) as worker:
                while not problems:
                    with lock:
                        position = next(positions, None)
                    if position is None:
                        return
                    verdict = worker.run(programs[position])
                    with lock:
                        if verdict.status in ("timeout", "broke"):
                            again.append(position)
                        else:
                            settle(position, verdict)
        except BaseException as problem:
            problems.append(problem)

    count = min(workers or usable_cpus(), len(programs))
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    if again:
        with Worker(kind, mounts, limits, preload=preload) as worker:
            for position in sorted(again):
                alone = worker.run(programs[position])
                settle(
                    position, Verdict(alone.id, alone.status, alone.detail, alone.output, alone.seconds, retried=True)
                )
    return [verdict for verdict in verdicts if verdict is not None]


def usable_cpus() -> int:
    """Cores this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
