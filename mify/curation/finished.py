"""The files of a finished curation read back: Parquet or JSON lines, in one file or many, on this machine or by URL."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mify.curation.documents import FIELDS, REJECTED_FIELDS, Document, Rejected, read_documents, read_rejected
from mify.curation.locations import Location, is_url, join, opened, stat
from mify.curation.readers import unpacked
from mify.errors import MifyError


def read_kept(folder: Location, report: Mapping[str, Any]) -> Iterator[tuple[Document, str]]:
    """(document, "kept for training" or "kept, held out") in the order of the files."""
    for kind, outcome in (("documents", "kept for training"), ("held_out", "kept, held out")):
        for name in _names(report, kind):
            with _local(join(folder, name)) as path:
                if name.endswith(".parquet"):
                    yield from ((document, outcome) for document in read_documents(path))
                else:
                    yield from ((Document(*values), outcome) for values in _json_lines(path, FIELDS))


def read_dropped(folder: Location, report: Mapping[str, Any]) -> Iterator[Rejected]:
    """The rejected documents in the order of the files."""
    for name in _names(report, "rejected"):
        with _local(join(folder, name)) as path:
            if name.endswith(".parquet"):
                yield from read_rejected(path)
            else:
                for values in _json_lines(path, REJECTED_FIELDS):
                    yield Rejected(Document(*values[: len(FIELDS)]), *values[len(FIELDS) :])


def _names(report: Mapping[str, Any], kind: str) -> list[str]:
    """The files of a kind, as the report lists them: "documents.parquet", "documents-00001-of-00004.jsonl.zst"."""
    return sorted(name for name in report["files"] if name.startswith((f"{kind}.", f"{kind}-")))


def _json_lines(path: Path, fields: tuple[str, ...]) -> Iterator[list[str]]:
    with unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                values = [row[field] for field in fields]
            except (ValueError, KeyError, TypeError) as error:
                raise MifyError(f"{path.name}: line {number} is damaged ({error})", "curate again") from None
            yield values


@contextmanager
def _local(location: Location) -> Iterator[Path]:
    """The file itself, or a copy of what lies at a URL, which goes afterwards."""
    if not is_url(location):
        yield Path(location)
        return
    if stat(location) is None:
        raise MifyError(f"{location} does not exist", "its report names it: curate again")
    with tempfile.TemporaryDirectory(prefix="mify-") as folder:
        copy = Path(folder) / str(location).rpartition("/")[2]
        with opened(location) as remote, copy.open("wb") as file:
            shutil.copyfileobj(remote, file, 16 << 20)
        yield copy
