"""Every prompt, completion and verdict as JSON lines, kept while a run goes on, so that a killed run continues.

A journal's first line is its header: format, version and the settings that everything in it depends on. Lines come in
the order in which results came; `finish` sorts them, so that equal runs leave equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from mify.errors import MifyError
from mify.files import atomic_file, text_lines

VERSION = 1


class Journal:
    """An append-only JSONL file of records that are told apart by some of their fields.

    Args:
        path: the file; continued where it exists with the same header.
        format: the name of the format, for the header.
        settings: what the records depend on (JSON values).
        key: the fields that identify a record.

    Raises:
        MifyError: the file belongs to other settings, or is no such journal.
    """

    def __init__(self, path: str | os.PathLike[str], format: str, settings: dict[str, Any], key: Sequence[str]) -> None:
        self.path = Path(path)
        self._header = {"format": format, "version": VERSION, "settings": settings}
        self._key = tuple(key)
        self.records: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if self.path.exists():
            self._read()
        else:
            self._write(())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def key_of(self, record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in self._key)

    def add(self, record: dict[str, Any]) -> None:
        """Appends one record; it is in the file when this returns."""
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as records come
        self._file.write(_line(record))
        self._file.flush()
        self.records[self.key_of(record)] = record

    def finish(self) -> None:
        """Writes the records sorted by key, atomically, and closes the file."""
        self.close()
        self._write(self.records[key] for key in sorted(self.records))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, records: Iterable[dict[str, Any]]) -> None:
        with atomic_file(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(_line(self._header))
            file.writelines(_line(record) for record in records)

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").split("\n")
        torn = lines.pop()  # empty, unless a kill cut the last line: that record was not finished
        try:
            header = json.loads(lines[0])
            records = [json.loads(line) for line in lines[1:]]
            found = {self.key_of(record): record for record in records}
        except (IndexError, json.JSONDecodeError, KeyError, TypeError):
            raise MifyError(f"{self.path} is damaged", "delete it, or start over with --fresh") from None
        if not isinstance(header, dict) or header.get("format") != self._header["format"]:
            raise MifyError(f"{self.path} is no {self._header['format']} journal", "give another folder with --out")
        if header.get("version") != VERSION:
            raise MifyError(
                f"{self.path} has version {header.get('version')!r}; this mify knows {VERSION}",
                "start over with --fresh",
            )
        if header.get("settings") != json.loads(json.dumps(self._header["settings"])):
            names = _differences(header.get("settings"), json.loads(json.dumps(self._header["settings"])))
            raise MifyError(
                f"{self.path} was made with other settings ({', '.join(names)})",
                "start over with --fresh, or give another folder with --out",
            )
        self.records = found
        if torn:
            self._write(found.values())


def read_records(path: str | os.PathLike[str], format: str) -> list[dict[str, Any]]:
    """The records of a finished journal, without its header.

    Raises:
        MifyError: it is missing, damaged, or of another format or version.
    """
    path = Path(path)
    try:
        header, *records = [json.loads(line) for line in text_lines(path)]
    except FileNotFoundError:
        raise MifyError(f"{path} does not exist", "run the evaluation that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError):
        raise MifyError(f"{path} is damaged", "delete it, or start over with --fresh") from None
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (format, VERSION):
        raise MifyError(f"{path} is no {format} journal of version {VERSION}", "start over with --fresh")
    return records


def _differences(there: Any, here: dict[str, Any]) -> list[str]:
    """The names of the settings that differ."""
    found = there if isinstance(there, dict) else {}
    return sorted(name for name in found.keys() | here.keys() if found.get(name) != here.get(name))


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=True, sort_keys=True) + "\n"
