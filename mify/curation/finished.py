"""The files of a finished curation read back: Parquet or JSON lines, in one file or many, on this machine or by URL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mify.curation.documents import (
    CLUSTERS_FORMAT,
    COLUMNS,
    FIELDS,
    FORMAT,
    REJECTED_FORMAT,
    Document,
    Rejected,
    read_clusters,
    read_documents,
    read_rejected,
)
from mify.curation.locations import Location, filename, join
from mify.curation.readers import unpacked
from mify.errors import MifyError


def read_kept(folder: Location, report: Mapping[str, Any]) -> Iterator[tuple[Document, str]]:
    """(document, "kept for training" or "kept, held out") in the order of the files."""
    for kind, outcome in (("documents", "kept for training"), ("held_out", "kept, held out")):
        for place in _places(folder, report, kind):
            if _is_parquet(place):
                yield from ((document, outcome) for document in read_documents(place))
            else:
                yield from ((Document(*values), outcome) for values in _json_lines(place, FORMAT))


def read_dropped(folder: Location, report: Mapping[str, Any]) -> Iterator[Rejected]:
    """The rejected documents in the order of the files."""
    for place in _places(folder, report, "rejected"):
        if _is_parquet(place):
            yield from read_rejected(place)
        else:
            for values in _json_lines(place, REJECTED_FORMAT):
                yield Rejected(Document(*values[: len(FIELDS)]), *values[len(FIELDS) :])


def read_groups(folder: Location, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, id of the first of its group) of the documents that are in a group of near-duplicates."""
    for place in _places(folder, report, "clusters"):
        if _is_parquet(place):
            yield from read_clusters(place)
        else:
            yield from ((values[0], values[1]) for values in _json_lines(place, CLUSTERS_FORMAT))


def _places(folder: Location, report: Mapping[str, Any], kind: str) -> list[Location]:
    """The files of a kind, as the report lists them: "documents.parquet", "documents-00001-of-00004.jsonl.zst"."""
    return [join(folder, name) for name in sorted(report["files"]) if name.startswith((f"{kind}.", f"{kind}-"))]


def _is_parquet(place: Location) -> bool:
    return filename(place).endswith(".parquet")


def _json_lines(place: Location, form: str) -> Iterator[list[str]]:
    with unpacked(place) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                values = [row[column] for column in COLUMNS[form]]
            except (ValueError, KeyError, TypeError) as error:
                raise MifyError(f"{filename(place)}: line {number} is damaged ({error})", "curate again") from None
            yield values
