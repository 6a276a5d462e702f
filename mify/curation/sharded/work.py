"""The work folder of a run: whose it is, whether it may be continued, and when it goes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import read_json, write_json

FORMAT, VERSION = "curation-work", "1"
_PLAN, _LOCK = "plan.json", "lock"


@dataclass
class Work:
    """A work folder that this run holds.

    Args:
        folder: where it lies.
        keep_after_error: whether it stays when the run ends in a `MifyError`, to be resumed.
    """

    folder: Path
    keep_after_error: bool = True


@contextmanager
def work_folder(folder: Path, plan: Mapping[str, Any], *, resume: bool) -> Iterator[Work]:
    """Holds the work folder while a run is at work.

    What lies there from an earlier run is deleted, or with `resume` taken up where the plans are the same. At the end
    the folder goes, unless the run was interrupted or failed: then it can be resumed.

    Args:
        folder: it need not exist.
        plan: all that decides the result: configuration, options, inputs (JSON).

    Raises:
        MifyError: another run holds it; it is no work folder; or with `resume`, it is of another plan.
    """
    plan = {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(plan))}
    if folder.is_dir() and not (folder / _PLAN).exists() and any(path.name != _LOCK for path in folder.iterdir()):
        raise MifyError(f"{folder} holds other files", "give a new or empty folder for the work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MifyError(f"{folder} cannot be written ({error.strerror})", "name another with --work-folder") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MifyError(f"another run is at work in {folder}", "wait for it, or give another folder") from None
        if resume and (folder / _PLAN).exists():
            _check(folder, read_json(folder / _PLAN), plan)
        else:
            _clear(folder)
            write_json(folder / _PLAN, plan)
        work = Work(folder)
        try:
            yield work
        except MifyError:
            if not work.keep_after_error:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check(work: Path, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    if not isinstance(stored, dict) or (stored.get("format"), stored.get("version")) != (FORMAT, VERSION):
        raise MifyError(f"{work} is the work folder of another version of mify", "run again without --resume")
    if changes := list(_changes(stored, plan, "")):
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        raise MifyError(
            f"{work} is of a run with another configuration: " + "; ".join(changes[:4]) + more,
            "put back what it was, or start over without --resume",
        )


def _changes(stored: Any, plan: Any, where: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(plan, dict):
        for key in sorted({*stored, *plan}):
            yield from _changes(stored.get(key), plan.get(key), f"{where}.{key}" if where else key)
    elif stored != plan:
        yield f"{where} was {_short(stored)} and is {_short(plan)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
