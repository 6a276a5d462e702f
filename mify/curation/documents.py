"""Documents and their Parquet files: what every step of the curation reads and writes.

`documents`: Parquet (zstd), rows sorted by id, one column per field of `Document`.
`rejected`: the same columns, then the stage, the reason and the evidence (JSON) for which each was dropped.
`clusters`: of every document in a group of near-duplicates its id and that of the group's first document.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mify.curation.locations import Location, opened, stat
from mify.errors import MifyError
from mify.files import atomic_file

FORMAT = "documents"
REJECTED_FORMAT = "rejected-documents"
CLUSTERS_FORMAT = "document-clusters"
VERSION = "1"
DOMAINS = ("code", "text", "math")
FIELDS = ("id", "text_sha256", "text", "domain", "language", "license", "source", "repo", "path")
REJECTED_FIELDS = (*FIELDS, "stage", "reason", "evidence")

# A row group holds whole documents up to this much text: readers need about one group in memory.
ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Document:
    """One file, page or record.

    Args:
        id: SHA-256 over (source, repo, path, original text), 64 hexadecimal digits. It stays when the text is redacted.
        text_sha256: SHA-256 of `text` in UTF-8.
        text: the content.
        domain: "code", "text" or "math".
        language: lower-case name as in `mify.curation.languages`, e.g. "python", "markdown".
        license: an SPDX expression, or "unknown".
        source: where it was read from, e.g. "python-installation".
        repo: repository or package within the source.
        path: path within the repository or package, never absolute.
    """

    id: str
    text_sha256: str
    text: str
    domain: str
    language: str
    license: str
    source: str
    repo: str
    path: str

    @classmethod
    def create(cls, text: str, domain: str, language: str, license: str, source: str, repo: str, path: str) -> Document:
        """A document with its id and hash.

        Raises:
            ValueError: `domain` is unknown, or `text` holds lone surrogates (no UTF-8 exists for it).
        """
        if domain not in DOMAINS:
            raise ValueError(f"domain = {domain!r}: one of {', '.join(DOMAINS)} is expected")
        encoded = text.encode("utf-8")
        digest = hashlib.sha256()
        # Lengths stand before the fields, so that ("a", "bc") and ("ab", "c") differ.
        for field in (source.encode("utf-8"), repo.encode("utf-8"), path.encode("utf-8"), encoded):
            digest.update(len(field).to_bytes(8, "little"))
            digest.update(field)
        return cls(
            digest.hexdigest(), hashlib.sha256(encoded).hexdigest(), text, domain, language, license, source, repo, path
        )

    def with_text(self, text: str) -> Document:
        """The same document (same id) with another text, as after redaction."""
        return replace(self, text=text, text_sha256=hashlib.sha256(text.encode("utf-8")).hexdigest())

    @property
    def num_bytes(self) -> int:
        """The length of the text in UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that was dropped.

    Args:
        document: what was dropped; its text is empty where it could not be read as text.
        stage: the stage of the pipeline, e.g. "quality".
        reason: the rule, e.g. "starcoder2/max_line_length".
        evidence: JSON object with what the rule saw.
    """

    document: Document
    stage: str
    reason: str
    evidence: str

    @classmethod
    def create(cls, document: Document, stage: str, reason: str, evidence: Mapping[str, Any]) -> Rejected:
        """With the evidence as JSON in one spelling (sorted keys)."""
        return cls(document, stage, reason, json.dumps(evidence, sort_keys=True, ensure_ascii=False))


def write_documents(path: str | os.PathLike[str], documents: Iterable[Document]) -> None:
    """Writes a documents file, sorted by id, atomically."""
    rows = sorted(documents, key=lambda document: document.id)
    _write(path, FORMAT, [_document_row(document) for document in rows])


def write_rejected(path: str | os.PathLike[str], rejected: Iterable[Rejected]) -> None:
    """Writes a file of rejected documents, sorted by (id, stage, reason, evidence), atomically."""
    rows = sorted(rejected, key=lambda item: (item.document.id, item.stage, item.reason, item.evidence))
    _write(path, REJECTED_FORMAT, [_rejected_row(item) for item in rows])


def read_documents(path: Location | os.PathLike[str]) -> Iterator[Document]:
    """Documents in the order of their ids, a row group at a time.

    Raises:
        MifyError: the file is missing, not Parquet, of another format or version, lacks a column, or is not sorted.
    """
    for values in _read(path, FORMAT, FIELDS):
        yield Document(*values)


def read_rejected(path: Location | os.PathLike[str]) -> Iterator[Rejected]:
    """Rejected documents in the order of their ids. Errors as `read_documents`."""
    for values in _read(path, REJECTED_FORMAT, REJECTED_FIELDS):
        yield Rejected(Document(*values[: len(FIELDS)]), *values[len(FIELDS) :])


def read_clusters(path: Location | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """(id, id of the first document of its cluster) in the order of the ids. Errors as `read_documents`."""
    for values in _read(path, CLUSTERS_FORMAT, COLUMNS[CLUSTERS_FORMAT]):
        yield values[0], values[1]


def file_format(path: Location | os.PathLike[str]) -> str:
    """The `mify.format` of a Parquet file, "" where it has none. Raises `MifyError` for what is not Parquet."""
    with _parquet(path) as file:
        metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
    return metadata.get(b"mify.format", b"").decode("utf-8", "replace")


def _document_row(document: Document) -> tuple[str, ...]:
    return tuple(getattr(document, field) for field in FIELDS)


def _rejected_row(item: Rejected) -> tuple[str, ...]:
    return (*_document_row(item.document), item.stage, item.reason, item.evidence)


def _write(path: str | os.PathLike[str], name: str, rows: Sequence[tuple[str, ...]]) -> None:
    import pyarrow as pa

    fields = COLUMNS[name]
    with atomic_file(path) as temporary, SortedWriter(temporary, name, len(rows)) as writer:
        for start in range(0, len(rows), 1024):
            columns = zip(*rows[start : start + 1024], strict=True)
            writer.add(pa.table([pa.array(column, pa.string()) for column in columns], names=list(fields)))


# Columns with few distinct values. Ids, hashes, texts and paths are written plain.
_DICTIONARY = ("domain", "language", "license", "source", "repo", "cluster")


COLUMNS = {FORMAT: FIELDS, REJECTED_FORMAT: REJECTED_FIELDS, CLUSTERS_FORMAT: ("id", "cluster")}


class SortedWriter:
    """Writes a file of documents or of rejected ones from tables of rows that come sorted, a row group at a time.

    Where the tables are cut changes no byte. Used as a context; the file is whole when it ends without an error.

    Args:
        path: written in place: the caller sees to it that nobody takes it for finished.
        name: `FORMAT` or `REJECTED_FORMAT`.
        num_rows: that will come.
    """

    def __init__(self, path: str | os.PathLike[str], name: str, num_rows: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._num_rows = num_rows
        self._schema = pa.schema(
            [pa.field(field, pa.string(), nullable=False) for field in COLUMNS[name]],
            # Parquet checks its pages by CRC but not its footer: the number of rows stands twice.
            metadata={"mify.format": name, "mify.version": VERSION, "mify.rows": str(num_rows)},
        )
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=self._dictionary(), write_page_checksum=True
        )
        self._pending: list[Any] = []
        self._pending_rows = self._pending_bytes = self._written = 0

    def _dictionary(self) -> list[str]:
        return [name for name in _DICTIONARY if name in self._schema.names]

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None and self._written != self._num_rows:
            raise ValueError(f"num_rows = {self._num_rows}, but {self._written} rows came")

    def add(self, table: Any) -> None:
        """Takes a `pyarrow.Table` with the columns of the format."""
        import pyarrow.compute as pc

        start = 0
        column = "text" if "text" in table.column_names else "id"
        for index, size in enumerate(pc.binary_length(table.column(column)).to_pylist()):
            full = self._pending_bytes + size > ROW_GROUP_BYTES or self._pending_rows >= ROW_GROUP_ROWS
            if full and self._pending_rows:
                self._pending.append(table.slice(start, index - start))
                self._flush()
                start = index
            self._pending_rows += 1
            self._pending_bytes += size
        self._pending.append(table.slice(start))

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending_rows:
            # One array a column: pages are cut where arrays are.
            group = pa.concat_tables(self._pending).combine_chunks().cast(self._schema)
            self._writer.write_table(group)
        self._written += self._pending_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0


@contextmanager
def _parquet(path: Location | os.PathLike[str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    location = path if isinstance(path, str) else Path(path)
    if stat(location) is None:
        raise MifyError(f"{path} does not exist", "check the path, or run the step that writes it (mify curate)")
    with opened(location) as source:
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MifyError(
                f"{path} is not a whole Parquet file ({error})", "it is damaged or of another kind: write it again"
            ) from None
        yield file


def _read(path: Location | os.PathLike[str], name: str, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    import pyarrow as pa

    with _parquet(path) as file:
        metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
        found = metadata.get(b"mify.format", b"").decode("utf-8", "replace")
        version = metadata.get(b"mify.version", b"").decode("utf-8", "replace")
        if found != name:
            raise MifyError(
                f"{path} holds {found or 'no mify format'!r}, not {name!r}", "give a file that `mify curate` wrote"
            )
        if version != VERSION:
            raise MifyError(
                f"{path} is {name} version {version!r}; this mify reads version {VERSION}",
                "use the mify that wrote it, or write it again",
            )
        schema = file.schema_arrow
        wrong = [name for name in fields if name not in schema.names or schema.field(name).type != pa.string()]
        if wrong:
            raise MifyError(f"{path} has no column {wrong[0]!r} of strings", "it is damaged: write it again")
        last, count = "", 0
        try:
            for batch in file.iter_batches(batch_size=1024, columns=list(fields)):
                for values in zip(*(batch.column(field).to_pylist() for field in fields), strict=True):
                    if values[0] < last:
                        raise MifyError(f"{path} is not sorted by id", "it was changed after it was written")
                    last = values[0]
                    count += 1
                    yield values
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MifyError(f"{path} is damaged ({error})", "delete it and write it again") from None
        if metadata.get(b"mify.rows", str(count).encode()) != str(count).encode():
            raise MifyError(f"{path} is damaged: rows are missing", "delete it and write it again")
