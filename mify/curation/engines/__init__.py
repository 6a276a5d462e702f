"""Where the work of a curation runs: processes of this machine by default, or the nodes of a Ray cluster.

    engine.run(tasks, done) -> outcomes

A task is a function, arguments, and a folder as its whole output (`tasks.Task`). Which engine runs it, with how many
workers and in which order, changes no byte.
"""

from __future__ import annotations

from mify.curation.engines.local import LocalEngine
from mify.curation.engines.tasks import Engine, Outcome, Task, execute
from mify.errors import MifyError

__all__ = ["Engine", "LocalEngine", "Outcome", "Task", "execute", "open_engine"]

ENGINES = ("local", "ray")


def open_engine(name: str, num_workers: int, address: str | None = None) -> Engine:
    """The engine of that name.

    Args:
        name: "local" or "ray".
        num_workers: processes of the local engine; tasks at once on Ray (0: as many as the cluster has processors).
        address: of the Ray cluster, as `ray.init` takes it; None: the one that RAY_ADDRESS names, or a new one on this
            machine.

    Raises:
        MifyError: no such engine, Ray is not installed, or there is no cluster at `address`.
    """
    if name not in ENGINES:
        raise MifyError(f"the engine {name!r} is not known", f"choose from {', '.join(ENGINES)}")
    if name == "local":
        return LocalEngine(num_workers)
    from mify.curation.engines.ray_cluster import RayEngine

    return RayEngine(num_workers, address)
