"""The first step: whatever is read becomes raw shards, files of records in the order in which they were read.

Shards are cut by the bytes in them, the first ones small, so that a small corpus has work for every process and a large
one has no more shards than it needs. Where they are cut changes no result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mify.curation.documents import Document, Rejected
from mify.curation.held_out import is_held_out
from mify.curation.readers import Limits, Piece, read_piece
from mify.curation.sharded.records import BATCH_BYTES, SCHEMA, Row, batch_of, open_table, row_of

# The first shards hold this much text, then twice as much every _STEP shards, up to the largest.
_SMALLEST, _LARGEST, _STEP = 2 << 20, 256 << 20, 16
_BATCH_ROWS = 4096


def shard_name(number: int) -> str:
    return f"raw-{number:05}.arrow"


def read_pieces(
    folder: Path, *, pieces: Sequence[Sequence[Any]], limits: Sequence[int], held_out: float, seed: int
) -> dict[str, Any]:
    """Task: reads some pieces of the input into raw shards.

    Args:
        pieces: as lists of their fields (JSON).
        limits: as a list of its fields.
        held_out: share of the contents that is held out, by a keyed hash of each.
        seed: of that hash.
    """

    def entries() -> Iterator[tuple[Document | Rejected, bool]]:
        for location, *rest in pieces:
            piece = Piece(location if "://" in location else Path(location), *rest)
            for entry in read_piece(piece, Limits(*limits)):
                held = isinstance(entry, Document) and is_held_out(entry.text_sha256, fraction=held_out, seed=seed)
                yield entry, held

    return write_raw(folder, entries())


def write_raw(folder: Path, entries: Iterable[tuple[Document | Rejected, bool]]) -> dict[str, Any]:
    """Writes (entry, whether it is held out) as raw shards; returns the documents in each and the totals."""
    writer = _RawWriter(folder)
    for entry, held in entries:
        document = entry if isinstance(entry, Document) else entry.document
        row = row_of(document, order=writer.documents, held_out=held, num_bytes=document.num_bytes)
        if isinstance(entry, Rejected):
            row.update(stage=entry.stage, reason=entry.reason, evidence=entry.evidence)
        writer.add(row)
    return writer.finish()


def read_raw(path: Path) -> Iterator[Row]:
    """The records of a raw shard."""
    reader = open_table(path)
    for index in range(reader.num_record_batches):
        yield from reader.get_batch(index).to_pylist()


class _RawWriter:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = self.bytes = 0
        self._shards: list[int] = []  # documents in each
        self._filled = 0  # bytes of text in the last one
        self._rows: list[Row] = []
        self._pending = 0
        self._file: Any = None

    def add(self, row: Row) -> None:
        size = row["num_bytes"]
        self.documents += 1
        self.bytes += size
        self._rows.append(row)
        self._pending += size
        if self._pending >= min(BATCH_BYTES, self._shard_bytes) or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def finish(self) -> dict[str, Any]:
        self._flush()
        self._end_shard()
        return {"shards": self._shards, "documents": self.documents, "bytes": self.bytes}

    @property
    def _shard_bytes(self) -> int:
        return min(_LARGEST, _SMALLEST << (max(0, len(self._shards) - 1) // _STEP))

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._file is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            path = self.folder / shard_name(len(self._shards))
            self._file = pa.ipc.new_file(str(path), SCHEMA, options=options)
            self._shards.append(0)
            self._filled = 0
        self._file.write_batch(batch_of(self._rows))
        self._shards[-1] += len(self._rows)
        self._filled += self._pending
        self._rows, self._pending = [], 0
        if self._filled >= self._shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def group_pieces(pieces: Sequence[Piece], num_bytes: int = _LARGEST, count: int = 256) -> Iterator[list[Piece]]:
    """Consecutive pieces that one task reads: about `num_bytes`, at most `count`."""
    group: list[Piece] = []
    total = 0
    for piece in pieces:
        if group and (total + piece.num_bytes > num_bytes or len(group) == count):
            yield group
            group, total = [], 0
        group.append(piece)
        total += piece.num_bytes
    if group:
        yield group


def describe(pieces: Sequence[Piece]) -> list[list[Any]]:
    """Pieces as JSON."""
    described: list[list[Any]] = json.loads(json.dumps([[str(piece.location), *piece[1:]] for piece in pieces]))
    return described
