"""The engine that needs nothing: processes of this machine, or just this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from mify.curation.engines.tasks import Outcome, Task, checked, execute
from mify.curation.workers import new_pool
from mify.errors import MifyError

# A task whose worker dies this often is what kills it.
MAX_ATTEMPTS = 3


class LocalEngine:
    """Tasks in `num_workers` processes; with one, in this process.

    A worker that dies (most often killed for want of memory) takes its pool along; a new pool runs the tasks that were
    in flight again, the second time one by one, so that the one that kills its worker is named.
    """

    name = "local"

    def __init__(self, num_workers: int = 1) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers = {num_workers}: at least 1 is expected")
        self.num_workers = num_workers
        self.lost_workers = 0
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
        """See `Engine.run`."""
        outcomes: list[Outcome | None] = [None] * len(tasks)
        if self.num_workers == 1 or len(tasks) == 1:
            for index, task in enumerate(tasks):
                outcomes[index] = checked(task, execute(task))
                done(index)
            return [outcome for outcome in outcomes if outcome is not None]
        attempts = [0] * len(tasks)
        todo = deque(range(len(tasks)))
        while todo:
            # Suspects go alone.
            alone = any(attempts[index] > 1 for index in todo)
            flying = self._flight(tasks, todo, 1 if alone else 2 * self.num_workers, outcomes, done)
            for index in flying:
                attempts[index] += 1
                if attempts[index] >= MAX_ATTEMPTS:
                    raise MifyError(
                        f"a worker process died {MAX_ATTEMPTS} times at: {tasks[index].label or tasks[index].name}"
                        " (most often the system kills it for want of memory)",
                        "give fewer --workers or smaller shards, and go on with --resume",
                    )
            todo.extendleft(reversed(flying))
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """See `Engine.close`."""
        if self._pool is not None:
            # What still runs was given up: its output is whole or absent, so it need not be waited for.
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _flight(
        self,
        tasks: Sequence[Task],
        todo: deque[int],
        width: int,
        outcomes: list[Outcome | None],
        done: Callable[[int], None],
    ) -> list[int]:
        """Runs tasks until all are done or the pool breaks; returns those that were in flight then."""
        pool = self._pool = self._pool or new_pool(self.num_workers)
        flying: dict[Future[Outcome], int] = {}
        try:
            while todo or flying:
                while todo and len(flying) < width:
                    index = todo.popleft()
                    try:
                        flying[pool.submit(execute, tasks[index])] = index
                    except BrokenProcessPool:
                        todo.appendleft(index)
                        raise
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    index = flying.pop(future)
                    outcomes[index] = checked(tasks[index], outcome)
                    done(index)
        except BrokenProcessPool:
            self.lost_workers += 1
            pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        finally:
            for future in flying:
                future.cancel()
        return sorted(flying.values())
