"""The engine for a cluster: every task a Ray core task (not Ray Data), retried where its worker or node dies.

All nodes must have mify installed, and see the work folder and the inputs under the same path or URL.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mify.curation.engines.tasks import Outcome, Task, checked, execute
from mify.errors import MifyError

if TYPE_CHECKING:
    import ray

# A task whose worker dies this often is what kills it.
MAX_RETRIES = 3


class RayEngine:
    """Tasks on a Ray cluster, one processor each.

    Args:
        num_workers: tasks that are submitted at once; 0: twice the processors of the cluster.
        address: as `ray.init` takes it. Where Ray is initialized already, that is used and left open.
    """

    name = "ray"

    def __init__(self, num_workers: int = 0, address: str | None = None) -> None:
        # Nothing is sent home.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise MifyError("the engine ray needs the package ray", "pip install 'mify[ray]'") from None
        self._ray = ray
        self._owned = not ray.is_initialized()
        if self._owned:
            _reach(address)
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _no_cluster(address, str(error).partition("\n")[0]) from None
        cpus = int(ray.cluster_resources().get("CPU", 1))
        self.num_workers = num_workers or 2 * cpus
        self.lost_workers = 0
        self._remote: Any = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(execute)

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
        """See `Engine.run`."""
        outcomes: list[Outcome | None] = [None] * len(tasks)
        flying: dict[ray.ObjectRef, int] = {}
        todo = iter(range(len(tasks)))
        try:
            while True:
                while len(flying) < self.num_workers and (index := next(todo, None)) is not None:
                    flying[self._remote.remote(tasks[index])] = index
                if not flying:
                    break
                ready, _ = self._ray.wait(list(flying), num_returns=1)
                for reference in ready:
                    index = flying.pop(reference)
                    outcomes[index] = checked(tasks[index], self._get(tasks[index], reference))
                    done(index)
        finally:
            for reference in flying:
                self._ray.cancel(reference)
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """See `Engine.close`."""
        if self._owned:
            self._ray.shutdown()

    def _get(self, task: Task, reference: ray.ObjectRef) -> Outcome:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            raise MifyError(
                f"a worker process died {MAX_RETRIES + 1} times at: {task.label or task.name} ({type(error).__name__})",
                "give the nodes more memory or smaller shards, and go on with --resume",
            ) from None
        return outcome


def _reach(address: str | None) -> None:
    """Ray tries for minutes where nobody listens; this says so at once."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str | None, why: str) -> MifyError:
    return MifyError(
        f"there is no Ray cluster at {address or 'the address in RAY_ADDRESS'} ({why})",
        "start one with `ray start --head`, or leave the address out for one on this machine",
    )
