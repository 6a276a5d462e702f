"""Work spread over processes in a fixed order, so that the result does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from mify.errors import MifyError

T = TypeVar("T")
R = TypeVar("R")

Map = Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]


def usable_cpus() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """`map` in this process (`count` 1) or over `count` processes, results in the order of the items."""

    def __init__(self, count: int, pool: ProcessPoolExecutor | None) -> None:
        self.count = count
        self._pool = pool

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` must be importable by name. At most three items a worker are in flight: memory stays bounded.

        Raises:
            MifyError: a worker was killed.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) >= 3 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise MifyError(
                "a worker process of the curation died (most often the system killed it for want of memory)",
                "run the command again with --workers 1",
            ) from None
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """`count` worker processes, started by `forkserver` (`spawn` where there is none): a fork of a process whose
    threads hold locks (torch, Arrow, progress bars) can hang. Scripts that call this need the usual
    `if __name__ == "__main__":` guard for a count above 1.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"workers = {count}: at least 1 is expected")
    if count == 1:
        yield Workers(1, None)
        return
    pool = new_pool(count)
    try:
        yield Workers(count, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def new_pool(count: int) -> ProcessPoolExecutor:
    """`count` processes, started as `workers` says, that leave Ctrl-C to their parent and end when it is gone."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method), initializer=_begin_worker)


def _begin_worker() -> None:
    # Ctrl-C reaches the whole process group; without this every worker prints a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The server of forks ends with the process that asked for it, and its children get another parent.
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most `size` items."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
