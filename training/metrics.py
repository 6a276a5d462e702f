"""`metrics.jsonl`: one line a step, and equal, times aside, between a run that was killed and one that was not.

What depends on the clock stands under the key `time` of a record; everything else is a function of the configuration.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from mify.files import atomic_file


class MetricsLog:
    """Appends records to a JSONL file. `lines` is what a checkpoint remembers; a resumed run cuts the file there."""

    def __init__(self, path: Path, lines: int = 0) -> None:
        """Keeps the first `lines` records of `path` and drops the rest: they will be written again."""
        self.path = path
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.is_file() else []
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self.lines = len(kept)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.lines += 1

    def sync(self) -> None:
        """fsync: after it, the lines so far survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a torn last line (the process was killed in it) is left out."""
    whole, _, _ = Path(path).read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n")] if whole else []


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what the clock decided: what must be equal between two runs of one configuration."""
    return [{key: value for key, value in record.items() if key != "time"} for record in records]
