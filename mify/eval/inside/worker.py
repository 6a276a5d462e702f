"""The warm worker inside a sandbox: it forks a child per program and reports how each one ended.

Protocol on stdin and stdout: four bytes of length (big-endian), then JSON. First comes a message of the worker's own,
{"ready": true, …}; then each job {"source", "tests", "setup", "entry_points", "apart", "limits"} is answered by
{"status", "detail", "output", "seconds"}, or the worker ends, and is replaced, because it could not clean up.

How a program is kept from the worker, by `isolation`:
  uid     the worker is uid 0 of the sandbox with CAP_SETUID and CAP_SETGID only, the program an unprivileged uid: it
          can neither signal, trace, nor limit the worker;
  pidns   an ordinary user has one uid only, so the program gets a PID namespace of its own (the worker holds
          CAP_SYS_ADMIN in its user namespace for that, the program holds nothing): it cannot even name the worker;
  none    no isolation: only where the user insisted.

How a verdict is kept honest: a program has passed only if its process exits with status 0 *and* has written, on a pipe
that only it and the worker hold, a random token that is made anew for every program and written after the last test
returned. An early `sys.exit(0)` or `os._exit(0)` has not written it. In the joint form program and tests share an
interpreter, so a program that goes looking for the harness (frames, gc, ctypes) could find the token; in the form
`apart` (see there) it is in another process than the tests and never sees one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NoReturn

from mify.eval.inside import apart
from mify.eval.inside.confine import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    confine,
    give_up_identity,
    libc,
    seccomp_filter,
)

KEPT_OUTPUT = 2000
MAX_COMPLETION = 65536
LIVE, COMPLETION, CHANNEL = 1, 3, 4  # descriptors of a child: output, the verdict's pipe, the other process


class Worker:
    """Args: isolation: see above. job_uid: the programs' uid. scratch: their only writable folder."""

    def __init__(self, isolation: str, job_uid: int, scratch: str) -> None:
        self.isolation, self.job_uid, self.scratch = isolation, job_uid, scratch

    def serve(self) -> None:
        """Answers jobs until stdin closes. Ends the process where something of a program cannot be removed."""
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        filtered = seccomp_filter(os.uname().machine) is not None
        apart.send(1, {"ready": True, "python": sys.version.split()[0], "seccomp": filtered})
        while (job := apart.receive(0)) is not None:
            apart.send(1, self.run(job))
            if not self.cleaned():
                sys.exit(3)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Runs one program and says how it ended."""
        output_read, output_write = os.pipe2(os.O_CLOEXEC)
        complete_read, complete_write = os.pipe2(os.O_CLOEXEC)
        started = time.monotonic()
        if job["apart"]:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                solution = {CHANNEL: theirs.fileno()}
                self.fork(job, output_write, solution, self.scratch, lambda: _run_solution(job))
                # Made after the solution's process, which therefore never had it.
                token = os.urandom(16).hex().encode()
                tests = {COMPLETION: complete_write, CHANNEL: ours.fileno()}
                child = self.fork(job, output_write, tests, "/", lambda: _run_tests_apart(job, token))
        else:
            token = os.urandom(16).hex().encode()
            child = self.fork(
                job, output_write, {COMPLETION: complete_write}, self.scratch, lambda: _run_joint(job, token)
            )
        os.close(complete_write)
        os.close(output_write)
        watched = _watch(child, output_read, complete_read, started + job["limits"]["wall_s"], job["limits"])
        if watched.over:
            self.kill(child)
        _, wait_status = os.waitpid(child, 0)
        watched.drain()
        seconds = round(time.monotonic() - started, 4)
        status, detail = watched.over, watched.why
        if not status:
            status, detail = judge(os.waitstatus_to_exitcode(wait_status), watched.completion, token)
        return {
            "status": status,
            "detail": detail,
            "output": watched.output.decode("utf-8", "replace"),
            "seconds": seconds,
        }

    def fork(
        self, job: dict[str, Any], output: int, descriptors: dict[int, int], folder: str, then: Callable[[], NoReturn]
    ) -> int:
        """Forks a confined child that holds these descriptors and no other, and runs `then` in it. Returns its pid."""
        child = os.fork()
        if child:
            return child
        try:
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            # First beyond the places they are to have, so that none is overwritten.
            moved = {place: os.dup2(descriptor, 100 + place) for place, descriptor in descriptors.items()}
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.closerange(3, 100)
            for place, descriptor in moved.items():
                os.dup2(descriptor, place)
            os.closerange(100, 300)
            confine(self.isolation, self.job_uid, job["limits"], folder)
            _forget_harness(self.scratch)
            then()
        finally:
            os._exit(70)

    def kill(self, child: int) -> None:
        """Ends a program that ran over, with all it started."""
        if self.isolation == "none":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        elif self.isolation == "uid":
            self._kill_all_of_uid()
        else:
            os.kill(-1, signal.SIGKILL)  # all but this process and the sandbox's first
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)

    def _kill_all_of_uid(self) -> None:
        """kill(-1) as the program's uid, from a child: this process has no capability to signal another uid."""
        killer = os.fork()
        if killer == 0:
            try:
                give_up_identity(self.isolation, self.job_uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(killer, 0)

    def cleaned(self) -> bool:
        """True when no process, no file and no shared memory of the last program is left."""
        if not self._no_process_left():
            return False
        if self.isolation == "none":
            _wipe(self.scratch)
            return True
        if os.listdir(self.scratch):
            wiper = os.fork()
            if wiper == 0:
                try:
                    signal.alarm(5)
                    give_up_identity(self.isolation, self.job_uid)
                    _wipe(self.scratch)
                finally:
                    os._exit(0)
            os.waitpid(wiper, 0)
            if os.listdir(self.scratch):
                return False
        return not _left_in_ipc()

    def _no_process_left(self) -> bool:
        deadline = time.monotonic() + 5
        pause = 0.0
        while True:
            try:
                ended, _ = os.waitpid(-1, os.WNOHANG)  # orphans come here: this process is their subreaper
            except ChildProcessError:
                return True
            if ended == 0:
                if time.monotonic() > deadline:
                    return False
                if self.isolation == "uid":
                    self._kill_all_of_uid()
                elif self.isolation == "pidns":
                    os.kill(-1, signal.SIGKILL)
                else:
                    _kill_children()
                time.sleep(pause)
                pause = 0.002


class _Watched:
    """What a program left on its pipes, and whether it ran over."""

    def __init__(self, output_read: int, complete_read: int, limit: int) -> None:
        self._output_read, self._complete_read, self._limit = output_read, complete_read, limit
        self.output, self.written, self.completion = b"", 0, b""
        self.over = self.why = ""

    def take(self, descriptor: int) -> bool:
        """Reads what is there; False at the end of the stream."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        if descriptor == self._output_read:
            self.written += len(data)
            self.output += data[: KEPT_OUTPUT - len(self.output)]
        else:
            self.completion += data
        if self.written > self._limit or len(self.completion) > MAX_COMPLETION:
            self.over, self.why = "output", f"over {self._limit} bytes of output"
        return bool(data)

    def drain(self) -> None:
        """Reads what is left behind an ended program and closes the pipes."""
        for descriptor in (self._output_read, self._complete_read):
            before = -1
            while not self.over and before != self.written + len(self.completion):
                before = self.written + len(self.completion)
                self.take(descriptor)
            os.close(descriptor)


def _watch(child: int, output_read: int, complete_read: int, deadline: float, limits: dict[str, Any]) -> _Watched:
    watched = _Watched(output_read, complete_read, limits["output_bytes"])
    handle = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (handle, output_read, complete_read):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    ended = False
    while not ended and not watched.over:
        left = deadline - time.monotonic()
        if left <= 0:
            watched.over, watched.why = "timeout", f"over {limits['wall_s']:g} s"
            break
        for descriptor, _ in poll.poll(left * 1000):
            if descriptor == handle:
                ended = True
            elif not watched.take(descriptor):
                poll.unregister(descriptor)
    os.close(handle)
    return watched


def judge(exit_code: int, completion: bytes, token: bytes) -> tuple[str, str]:
    """The verdict, from what cannot be forged: the exit status, and the token on the completion pipe."""
    number = -exit_code if exit_code < 0 else exit_code - 128 if 128 < exit_code < 193 else 0
    if exit_code == 0 and completion == token:
        return "passed", ""
    if number == signal.SIGXCPU:
        return "timeout", "over the CPU limit"
    if number and not completion:
        return "crashed", f"signal {number}"
    if exit_code == 1 and completion.startswith(b"error "):
        text = completion[6:].decode("utf-8", "replace")
        if text.startswith("MemoryError"):
            return "memory", text
        return ("undecided" if text.startswith(apart.NotPlainDataError.__name__) else "failed"), text
    if not completion:
        return "exited", f"ended with status {exit_code} before its tests did"
    return "forged", "wrote to the verdict's pipe"


def _forget_harness(scratch: str) -> None:
    """Leaves an interpreter as a program expects it, the same each time."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mify"]:
        del sys.modules[name]
    random.seed(0)
    os.environ.clear()
    os.environ.update({"HOME": scratch, "TMPDIR": scratch, "PATH": "/usr/bin:/bin"})
    # numpy's BLAS would reserve memory for a thread a core, which the limits on both are too small for.
    os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


def _fresh_module() -> dict[str, Any]:
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    return module.__dict__


def _run_joint(job: dict[str, Any], token: bytes) -> NoReturn:
    source = job["source"] + "\n" + job["tests"]
    _report(lambda: exec(compile(source, "<program>", "exec"), _fresh_module()), token)


def _run_tests_apart(job: dict[str, Any], token: bytes) -> NoReturn:
    def run() -> None:
        tests = compile(job["tests"], "<tests>", "exec")
        namespace = _fresh_module()
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        apart.bind(apart.Channel(CHANNEL), namespace, job["entry_points"], tests)
        exec(tests, namespace)

    _report(run, token)


def _run_solution(job: dict[str, Any]) -> NoReturn:
    source = job["source"]
    job.clear()  # the frames above hold it: a solution that looks through them must not find the tests
    namespace = _fresh_module()
    try:
        exec(compile(source, "<program>", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: it is the tests that decide
        apart.send(CHANNEL, {"error": [type(error).__name__, _text_of(error)]})
        os._exit(1)
    try:
        apart.serve_solution(CHANNEL, namespace)
        sys.stdout.flush()
    finally:
        os._exit(0)


def _report(run: Callable[[], object], token: bytes) -> NoReturn:
    """Runs program and tests; writes the token behind the last test, or the exception."""
    write, leave = os.write, os._exit
    try:
        run()
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are no pass either
        text = f"error {type(error).__name__}: {_text_of(error)}"
        try:
            sys.stdout.flush()
        finally:
            write(COMPLETION, text.encode("utf-8", "replace")[:500])
            leave(1)
    try:
        sys.stdout.flush()
    finally:
        write(COMPLETION, token)
        leave(0)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001 - a program may define a message that cannot be shown
        return "(its message cannot be shown)"


def _wipe(scratch: str) -> None:
    os.chdir(scratch)
    for name in os.listdir("."):
        if os.path.isdir(name) and not os.path.islink(name):
            os.chmod(name, 0o700)
            for folder, folders, _ in os.walk(name):
                for inner in folders:
                    if not os.path.islink(os.path.join(folder, inner)):
                        os.chmod(os.path.join(folder, inner), 0o700)
            shutil.rmtree(name, ignore_errors=True)
        else:
            os.unlink(name)


def _kill_children() -> None:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        for child in file.read().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def _left_in_ipc() -> bool:
    """True where the program left System V shared memory, queues or semaphores: they outlive processes.

    shm_info.used_ids, msginfo.msgpool and seminfo.semusz count what exists (shmctl(2), msgctl(2), semctl(2)).
    """
    buffer = ctypes.create_string_buffer(256)
    shm_info, msg_info, sem_info = 14, 12, 19

    def field(index: int) -> int:
        return int(struct.unpack_from("i", buffer, 4 * index)[0])

    if libc.shmctl(0, shm_info, buffer) >= 0 and field(0) > 0:
        return True
    if libc.msgctl(0, msg_info, buffer) >= 0 and field(0) > 0:
        return True
    return bool(libc.semctl(0, 0, sem_info, buffer) >= 0 and field(7) > 0)


def main(isolation: str, job_uid: str, scratch: str, preload: str, packages: str) -> None:
    """The process's start.

    Args:
        preload: names of modules to import now, with commas. packages: a folder for the import path, or "".
    """
    sys.path[:] = [entry for entry in sys.path if entry]
    if packages:
        sys.path.append(packages)
    for name in filter(None, preload.split(",")):
        __import__(name)
    Worker(isolation, int(job_uid), scratch).serve()
