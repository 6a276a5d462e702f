"""The records that travel between the stages of a sharded curation, and the files they lie in.

A record is a document with what is known of it so far. Two kinds of files:

- chunk files (`chunks.bin`, `index.npy`): for every flush and every partition one compressed record batch, so that a
  reader of one partition reads just its bytes;
- tables (`*.arrow`, Arrow's file format): memory-mapped, and uncompressed where single rows are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mify.curation.documents import FIELDS, Document
from mify.errors import MifyError

# The fields of a document, and:
#   order         place in the input: which of two documents of one id was read first
#   held_out      on which side of the split it stands
#   num_bytes     of its text as it was read
#   stage, reason, evidence    of its rejection; null while it is in
#   original      JSON of the fields a stage corrected, as they were read; null where none was
#   redactions    JSON of the redacted places by kind; null where there is none
#   overlap       JSON of [reason, evidence]: a benchmark's text in it; null where there is none
_EXTRA = (
    ("order", pa.int64()),
    ("held_out", pa.bool_()),
    ("num_bytes", pa.int64()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("evidence", pa.string()),
    ("original", pa.large_string()),
    ("redactions", pa.string()),
    ("overlap", pa.string()),
)
# Offsets of 64 bits: a partition may hold more than 2 GB of text.
DOCUMENT_COLUMNS = [pa.field(name, pa.large_string() if name == "text" else pa.string()) for name in FIELDS]
SCHEMA = pa.schema([*DOCUMENT_COLUMNS, *(pa.field(name, kind) for name, kind in _EXTRA)])
REJECTION = ("stage", "reason", "evidence")

_SHA256 = re.compile("[0-9a-f]{64}")
_CHUNKS, _INDEX = "chunks.bin", "index.npy"
# Text in one batch of a table: whole batches are decoded at once.
BATCH_BYTES = 16 << 20

Row = dict[str, Any]
Rows = dict[str, list[Any]]


def row_of(document: Document, **extra: Any) -> Row:
    """A record of a document; what is not given is null."""
    row: Row = {name: getattr(document, name) for name in FIELDS}
    row.update(dict.fromkeys(name for name, _ in _EXTRA))
    return row | extra


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as a batch of `SCHEMA`."""
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


def document_of(row: Row) -> Document:
    """The document of a record."""
    return Document(*(row[name] for name in FIELDS))


def partition_of(ids: Sequence[str], num_partitions: int) -> NDArray[np.int64]:
    """The partition of each id: equal ranges of the space of ids, ascending with them.

    Raises:
        MifyError: an id is no SHA-256 in lower-case hexadecimal digits.
    """
    wrong = next((id for id in ids if _SHA256.fullmatch(id) is None), None)
    if wrong is not None:
        raise MifyError(f"the document id {wrong[:80]!r} is no SHA-256", "make documents with Document.create")
    prefixes = np.frombuffer(bytes.fromhex("".join([id[:16] for id in ids])), dtype=">u8")
    # floor(prefix * P / 2^64) in 64 bits: the high half of the product, from two 32-bit halves.
    prefixes = prefixes.astype(np.uint64)
    high, low, count = prefixes >> np.uint64(32), prefixes & np.uint64(0xFFFFFFFF), np.uint64(num_partitions)
    return ((high * count + (low * count >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


class ChunkWriter:
    """Writes batches by partition."""

    def __init__(self, folder: Path, num_partitions: int) -> None:
        self._num_partitions = num_partitions
        self._folder = folder
        self._file = (folder / _CHUNKS).open("wb")
        self._codec = pa.Codec("zstd")
        # Of every chunk its end in the file, and its size unpacked.
        self._index: list[tuple[int, int]] = []

    def flush(self, batch: pa.RecordBatch) -> None:
        """Writes the rows of a batch, in their order, to their partitions."""
        partitions = partition_of(batch.column("id").to_pylist(), self._num_partitions)
        order = np.argsort(partitions, kind="stable")
        ends = np.searchsorted(partitions[order], np.arange(self._num_partitions), side="right")
        begin = 0
        for end in ends.tolist():
            size = 0
            if end > begin:
                rows = batch.take(pa.array(order[begin:end])).serialize()
                size = rows.size
                self._file.write(memoryview(self._codec.compress(rows)))
            self._index.append((self._file.tell(), size))
            begin = end

    def close(self) -> None:
        self._file.close()
        np.save(self._folder / _INDEX, np.array(self._index, np.int64).reshape(-1, 2))


def read_chunks(folder: Path, partition: int, num_partitions: int) -> Iterator[pa.RecordBatch]:
    """The batches of a partition."""
    index = np.load(folder / _INDEX, mmap_mode="r")
    codec = pa.Codec("zstd")
    with (folder / _CHUNKS).open("rb") as file:
        for at in range(partition, len(index), num_partitions):
            begin, (end, size) = int(index[at - 1, 0]) if at else 0, index[at].tolist()
            if size:
                file.seek(begin)
                packed = file.read(end - begin)
                yield pa.ipc.read_record_batch(codec.decompress(packed, size), SCHEMA)


def read_entries(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What was written with `tofile`, memory-mapped."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def write_rows(path: Path, table: pa.Table, rows: NDArray[np.int64], *, compressed: bool) -> None:
    """Writes these rows of a table, in this order, in batches of about `BATCH_BYTES` of text: never more is copied.

    Args:
        table: of one chunk, so that rows are taken without joining chunks first.
    """
    sizes = pc.binary_length(table.column("text")).to_numpy()[rows]
    ends = np.cumsum(sizes)
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        begin = 0
        while begin < len(rows):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
            writer.write_table(table.take(pa.array(rows[begin:end])))
            begin = end


def open_table(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A table, memory-mapped; batches are read when they are asked for.

    Raises:
        MifyError: it is missing or cut short.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise MifyError(f"{path} cannot be read ({error})", "delete the work folder and curate again") from None


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a table, one after the other."""
    reader = open_table(path)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
