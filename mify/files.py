"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mify.errors import MifyError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success it is synced and renamed to `path`.

    On an error the temporary file is removed and `path` is as it was. A full disk raises `MifyError`, and so does a
    place where nothing can be written.
    """
    path = Path(path)
    if path.is_dir():
        raise MifyError(f"{path} is a folder", "name a file")
    with _refusal_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _disk_full_named(path):
            yield temporary
            sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replaces: str | None = None) -> Iterator[Path]:
    """As `atomic_file`, for a folder: `path` appears with all its files or not at all, replacing what was there.

    Args:
        replaces: for a folder that a user names: of those that are not empty only one with this file and without
            folders in it is replaced. What else a user has there is not ours to delete.
    """
    path = Path(path)
    if replaces is not None:
        check_ours(path, replaces)
        if path.is_dir() and any(item.is_dir() for item in path.iterdir()):
            raise MifyError(f"{path} holds other folders", "name a folder that is new or empty")
    with _refusal_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _disk_full_named(path):
            yield temporary
            for folder, _, files in os.walk(temporary):
                for name in files:
                    sync(Path(folder) / name)
                sync(Path(folder))
            os.chmod(temporary, 0o755)
            if path.exists():
                # Two renames, so that a kill between them leaves the old folder beside, never a half-written one.
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                os.replace(path, old / path.name)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_ours(path: Path, *marks: str) -> None:
    """Raises MifyError unless `path` is nothing, an empty folder, or a folder that holds one of `marks` (globs)."""
    if path.is_dir():
        if not any(path.iterdir()) or any(next(path.glob(mark), None) is not None for mark in marks):
            return
        raise MifyError(
            f"{path} holds something else than would be written there", "name a folder that is new or empty"
        )
    if path.exists():
        raise MifyError(f"{path} is a file", "name a folder that is new or empty")


def make_folder(path: Path) -> Path:
    """Makes a folder, and those above it. Raises MifyError where that cannot be."""
    with _refusal_named(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file; a missing or broken one raises `MifyError` naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MifyError(f"{path} does not exist", "check the path, or run the step that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} is not valid JSON ({error})", "it is damaged: delete it and write it again") from None


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file that end with a line feed, and what follows the last.

    `str.splitlines` also cuts at U+0085, U+2028 and others, which JSON writes as they are.
    """
    lines = Path(path).read_bytes().decode("utf-8").split("\n")
    return lines if lines[-1] else lines[:-1]


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync of a file or folder, so that a rename after it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# As `tempfile` names what atomic_file and atomic_folder ask it for, and `curation.locations` what it publishes.
_LEFTOVER = re.compile(r"\..+\.([a-z0-9_]{8}|published)\.(tmp|old)")


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Deletes the temporary files and folders that a killed process left in `folder`; others' keep their places."""
    for leftover in Path(folder).glob(".*.*"):
        if _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def _refusal_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MifyError(f"{path} cannot be written ({error.strerror})", "check the path and its rights") from None


@contextmanager
def _disk_full_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise MifyError(
            f"the disk is full: {path} could not be written ({free / 1e6:.0f} MB free); nothing was left half-written",
            "free some space and run the command again; it continues where it stopped",
        ) from None
