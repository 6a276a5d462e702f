"""The host's end of one warm sandbox: starts it, hands it programs, and watches what the inside cannot."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.cgroup import Cgroup
from mify.eval.launch import Mounts, SandboxKind, remedy, start
from mify.eval.programs import Form, Limits, Program, Verdict
from mify.eval.suspicion import names_used, suspicion

# Modules that benchmark programs import most: loaded once per worker, free in every fork.
PRELOAD = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "typing"),
)
# What a worker itself and the forks' shared pages add to a program's memory as the host counts it.
OWN_MEMORY = 192 << 20
OWN_PROCESSES = 12
GRACE_S = 15.0
LOOK_EVERY_S = 0.05


class Worker:
    """One sandbox with a warm interpreter in it; not for use by two threads at once."""

    def __init__(
        self, kind: SandboxKind, mounts: Mounts, limits: Limits, *, index: int = 0, preload: tuple[str, ...] = PRELOAD
    ) -> None:
        self._kind, self._mounts, self._limits, self._preload = kind, mounts, limits, preload
        # A uid of its own for every worker of every process, among those no distribution gives to accounts.
        self._job_uid = 20000 + os.getpid() % 600 * 64 + index % 64
        self._root = tempfile.mkdtemp(prefix="mify-sandbox-")
        self._cgroup: Cgroup | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._too_much_memory = False
        self.starts = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, form: Form = "auto") -> Verdict:
        """Runs one program. A worker that the program took down is replaced at the next call.

        Args:
            form: "joint": solution and tests in one interpreter, as the original harnesses do it; "apart": in two
                processes; "auto": joint, and apart as well where a program that passed is suspect.

        Raises:
            MifyError: the sandbox does not start.
        """
        verdict = self._run(program, apart=form == "apart")
        if form == "auto" and verdict.passed:
            reason = suspicion(program.source, names_used(program.tests) - set(program.entry_points))
            if reason is not None:
                verdict = self._run(program, apart=True)
                if not verdict.passed:
                    verdict = replace(verdict, detail=f"{verdict.detail} (passed jointly, but {reason})")
        return verdict

    def _run(self, program: Program, *, apart: bool) -> Verdict:
        if self._process is None:
            self._start()
        message = {
            "source": program.source,
            "tests": program.tests,
            "setup": program.setup,
            "entry_points": list(program.entry_points),
            "apart": apart,
            "limits": asdict(self._limits),
        }
        started = time.monotonic()
        # The worker holds the limit itself; this one holds where the program stopped or killed the worker.
        self._too_much_memory = False
        answer = self._exchange(message, self._limits.wall_s + GRACE_S)
        if answer is not None:
            return Verdict(program.id, answer["status"], answer["detail"], answer["output"], answer["seconds"], apart)
        self._kill()
        status, why = "broke", "its worker ended or did not answer"
        if self._too_much_memory:
            status, why = "memory", f"over {self._limits.memory_bytes} bytes in all its processes"
        return Verdict(program.id, status, why, "", round(time.monotonic() - started, 4), apart)

    def close(self) -> None:
        self._kill()
        if self._cgroup is not None:
            self._cgroup.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def _start(self) -> None:
        limits = self._limits
        if self._cgroup is None and self._kind.confined:
            # Beside the program: the worker, the two or three processes that hold its namespaces, and its scratch.
            memory = limits.memory_bytes + limits.scratch_bytes + OWN_MEMORY
            name = Path(self._root).name
            self._cgroup = Cgroup.make(name, memory, limits.processes + OWN_PROCESSES)
        self._process = start(
            self._kind, self._mounts, self._job_uid, limits.scratch_bytes, self._root, self._preload, self._cgroup
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
                with contextlib.suppress(BrokenPipeError):  # of what could not be sent to it any more
                    stream.close()
        self._process = None

    def _exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
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
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ready, _, _ = select.select([descriptor], [], [], min(left, LOOK_EVERY_S))
            if ready:
                piece = os.read(descriptor, count - len(data))
                if not piece:
                    return None
                data += piece
            elif resident_bytes(self._process.pid) > self._limits.memory_bytes + OWN_MEMORY:
                # The address space of each process is limited inside; together they are watched from here.
                self._too_much_memory = True
                return None
        return data


def resident_bytes(pid: int) -> int:
    """Memory of a process and all its descendants, pages that they share counted for each."""
    total, pending = 0, [pid]
    while pending:
        folder = Path("/proc", str(pending.pop()))
        try:
            total += int((folder / "statm").read_text().split()[1]) * resource.getpagesize()
            for task in (folder / "task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except (OSError, IndexError, ValueError):
            continue  # it ended while it was looked at
    return total
