"""The work folder of a run: whose it is, whether it may be continued, and when it goes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import read_json, write_json

FORMAT, VERSION = "curation-work", "1"
_PLAN, _LOCK = "plan.json", "lock"


@contextmanager
def work_folder(work: Path, plan: Mapping[str, Any], *, resume: bool, keep: bool = False) -> Iterator[None]:
    """Holds the work folder while a run is at work.

    What lies there from an earlier run is deleted, or with `resume` taken up where the plans are the same. At the end
    the folder goes, unless `keep` is set or the run was interrupted or failed unforeseen: then it can be resumed.

    Args:
        plan: all that decides the result: configuration, options, inputs (JSON).

    Raises:
        MifyError: another run holds it; it is no work folder; or with `resume`, it is of another plan.
    """
    plan = {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(plan))}
    if work.is_dir() and not (work / _PLAN).exists() and any(path.name != _LOCK for path in work.iterdir()):
        raise MifyError(f"{work} holds other files", "give a new or empty folder for the work")
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MifyError(f"another run is at work in {work}", "wait for it, or give another folder") from None
        if resume and (work / _PLAN).exists():
            _check(work, read_json(work / _PLAN), plan)
        else:
            _clear(work)
            write_json(work / _PLAN, plan)
        try:
            yield
        except MifyError:
            if not (keep or resume):
                shutil.rmtree(work, ignore_errors=True)
            raise
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
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
