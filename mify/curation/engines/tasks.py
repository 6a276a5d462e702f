"""A task of a curation: a function, its arguments, and the folder that is its whole output.

A task's key is a hash of all that decides its output: the function, the arguments, and the digests of what it reads.
Its folder appears whole or not at all, with a stamp that holds the key; where a stamp with the same key lies already,
the task is done. So a run that was killed anywhere goes on where it stopped, a task may run twice at the same time on
two machines, and nothing of another configuration is ever taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mify import __version__
from mify.errors import MifyError
from mify.files import atomic_folder, read_json, sha256_file

STAMP = "task.json"
FORMAT, VERSION = "curation-task", "1"

# What a task does: writes files into the folder and returns counts (JSON).
Work = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work.

    Args:
        work: called as work(folder, **arguments); importable by name. What it writes and returns must depend on
            `arguments` and the contents of what it reads, and on nothing else.
        arguments: JSON values.
        output: the folder it makes.
        reads: digests of the tasks whose output it reads.
        label: for messages, e.g. "filter, shard 12".
        places: arguments that say where things lie, not what they are: they are no part of the key.
        version: of the mify that asks for it.
    """

    work: Work
    arguments: Mapping[str, Any]
    output: Path
    reads: tuple[str, ...] = ()
    label: str = ""
    places: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    @property
    def name(self) -> str:
        """The function's full name."""
        return f"{self.work.__module__}.{self.work.__qualname__}"

    @property
    def key(self) -> str:
        """A hash of what decides the output."""
        content = json.dumps([VERSION, self.name, self.arguments, self.reads], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Args:
        result: what its function returned.
        digest: of the files it wrote and of the result.
        files: (bytes, SHA-256) of each file it wrote.
        resumed: whether it was already done.
        error: (problem, remedy) of the `MifyError` it raised; then the rest is empty.
    """

    result: dict[str, Any]
    digest: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    resumed: bool = False
    error: tuple[str, str] | None = None


class Engine(Protocol):
    """Runs tasks, somewhere."""

    name: str
    lost_workers: int  # workers that died so far; their tasks were run again

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
        """Runs every task and returns the outcomes in their order.

        `done` is called with the index of each task as it ends.

        Raises:
            MifyError: what a task raised, or a worker that died again and again.
        """

    def close(self) -> None:
        """Lets the workers go."""


def execute(task: Task) -> Outcome:
    """Runs a task unless it is done: what a worker does, wherever it is."""
    if task.version != __version__:
        problem = f"a worker has mify {__version__}, the driver {task.version}"
        return Outcome({}, error=(problem, "install the same version on all nodes"))
    if (done := _stamped(task)) is not None:
        return done
    try:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(task.output) as folder:
            result = task.work(folder, **task.arguments, **task.places)
            # As a reader will see it, whatever the function returned.
            result = json.loads(json.dumps(result))
            files = {path.name: (path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())}
            digest = hashlib.sha256(json.dumps([files, result], sort_keys=True).encode()).hexdigest()
            stamp = {"format": FORMAT, "version": VERSION, "key": task.key, "digest": digest}
            (folder / STAMP).write_text(json.dumps(stamp | {"result": result, "files": files}, sort_keys=True))
            if _stamped(task) is not None:
                # Another worker was faster; its folder may be in use, and holds the same.
                raise _Done
    except _Done:
        return Outcome(result, digest, files)
    except MifyError as error:
        return Outcome({}, error=(error.problem, error.remedy))
    return Outcome(result, digest, files)


class _Done(Exception):
    """The output is there already."""


def _stamped(task: Task) -> Outcome | None:
    """The outcome of an earlier run of the same task whose files are all there."""
    path = task.output / STAMP
    if not path.is_file():
        return None
    stamp = read_json(path)
    if stamp.get("key") != task.key or (stamp.get("format"), stamp.get("version")) != (FORMAT, VERSION):
        return None
    files = {name: (size, digest) for name, (size, digest) in stamp["files"].items()}
    for name, (size, _) in files.items():
        file = task.output / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return Outcome(stamp["result"], stamp["digest"], files, resumed=True)


def checked(task: Task, outcome: Outcome) -> Outcome:
    """The outcome; raises the `MifyError` that the task ended in."""
    if outcome.error is not None:
        problem, remedy = outcome.error
        raise MifyError(problem, remedy)
    return outcome
