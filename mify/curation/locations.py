"""Where files of a curation lie: paths of this machine, or URLs that fsspec opens (s3://, gs://, https://, memory://).

A URL's protocol needs its own package (s3fs, gcsfs, …), which fsspec names where it is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, cast

from mify.errors import MifyError
from mify.files import remove_leftovers, sync

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# A path of this machine, or a URL.
Location: TypeAlias = Path | str


def is_url(location: Location) -> bool:
    """Whether it is for fsspec: a string with a protocol."""
    return isinstance(location, str) and "://" in location


def located(text: str) -> Location:
    """A command-line argument as a location; file:// is a path."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text if is_url(text) else Path(text)


def filename(location: Location) -> str:
    """The last part of a path or URL."""
    return str(location).rstrip("/").rpartition("/")[2] if is_url(location) else Path(location).name


def join(location: Location, name: str) -> Location:
    """A file in a folder."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(location) else Path(location) / name


class Found(NamedTuple):
    """A file: its location, its size in bytes and what changes when it does."""

    location: Location
    num_bytes: int
    stamp: str


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in it.

    Raises:
        MifyError: the protocol is unknown, or its package is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise MifyError(f"{url} cannot be opened ({error})", "check the URL; its protocol may need a package") from None
    return system, path


def stat(location: Location) -> Found | None:
    """What a file is now; None where there is none."""
    if not is_url(location):
        path = Path(location)
        if not path.is_file():
            return None
        status = path.stat()
        return Found(location, status.st_size, f"{status.st_size} {status.st_mtime_ns}")
    system, place = file_system(str(location))
    with _named(location):
        if not system.isfile(place):
            return None
        info = system.info(place)
        size = int(info.get("size") or 0)
        # What the file system knows of a version: S3's ETag, else a time, else the size alone.
        version = next(
            (info[key] for key in ("ETag", "etag", "md5", "LastModified", "mtime", "created") if key in info), ""
        )
        return Found(location, size, f"{size} {version}")


def list_files(url: str) -> list[str]:
    """The URLs of the files right below a URL, sorted; hidden ones left out. [] where it is no folder."""
    system, path = file_system(url)
    with _named(url):
        if not system.isdir(path):
            return []
        entries = system.ls(path, detail=True)
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "file"]
    return [str(join(url, name)) for name in sorted(names) if not name.startswith(".")]


@contextmanager
def opened(location: Location) -> Iterator[BinaryIO]:
    """A file for reading, closed afterwards."""
    if not is_url(location):
        with open(location, "rb") as local:
            yield local
        return
    system, path = file_system(str(location))
    with _named(location):
        remote = system.open(path, "rb")
    with remote:
        yield cast(BinaryIO, remote)


def publish(file: Path, location: Location) -> None:
    """Puts a finished file in its place, whole or not at all; it may be moved away."""
    if is_url(location):
        system, path = file_system(str(location))
        with _named(location), system.transaction, system.open(path, "wb") as remote, file.open("rb") as local:
            shutil.copyfileobj(local, cast(Any, remote), 16 << 20)
        return
    target = Path(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(file, target)
    except OSError:
        # Another disk: copied beside its place first.
        beside = target.with_name(f".{target.name}.published.tmp")
        shutil.copyfile(file, beside)
        sync(beside)
        os.replace(beside, target)
    os.chmod(target, 0o644)
    sync(target.parent)


def remove(location: Location) -> None:
    """Deletes a file where there is one."""
    if not is_url(location):
        Path(location).unlink(missing_ok=True)
        return
    system, path = file_system(str(location))
    with _named(location):
        if system.exists(path):
            system.rm_file(path)


def names_in(location: Location) -> list[str]:
    """The names of what lies in a folder; [] where there is none.

    Raises:
        MifyError: it is a file.
    """
    if not is_url(location):
        folder = Path(location)
        if folder.exists() and not folder.is_dir():
            raise MifyError(f"{folder} is a file", "give a folder with --out")
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    system, path = file_system(str(location))
    with _named(location):
        if system.isfile(path):
            raise MifyError(f"{location} is a file", "give a folder with --out")
        if not system.isdir(path):
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False))


def prepare(location: Location) -> None:
    """Makes a folder for output and takes away what a killed run left in it."""
    if not is_url(location):
        Path(location).mkdir(parents=True, exist_ok=True)
        remove_leftovers(location)
        return
    system, path = file_system(str(location))
    with _named(location):
        system.makedirs(path, exist_ok=True)


@contextmanager
def _named(location: Location) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise MifyError(
            f"{location} cannot be reached ({error})", "check the URL, the network and the rights"
        ) from None
