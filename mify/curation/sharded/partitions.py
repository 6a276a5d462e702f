"""The third step: partitions, each a range of ids, sorted; and exact duplicates across all of them.

A document that is still in gets a code: (1 where it is for training, partition, row), so that the order of codes is the
order in which documents are asked: the held-out ones first, then by id.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mify.curation.sharded.records import REJECTION, SCHEMA, open_table, read_chunks, write_rows
from mify.curation.stages import READ

ALIVE, GONE, TWICE = "alive.arrow", "gone.arrow", "twice.arrow"
DIGESTS, LOSERS = "digests.npy", "losers.npy"

# What a partition keeps of a document that is in, and of one that is out.
_ALIVE_COLUMNS = [
    name for name in SCHEMA.names if name not in ("order", *REJECTION, "original", "redactions")
]  # fmt: skip
GONE_COLUMNS = [name for name in SCHEMA.names if name not in ("order", "original", "redactions", "overlap")]

_TRAIN = np.uint64(1 << 63)
_PARTITION = np.uint64(40)

# An exact copy that goes, and the document that stays for it.
LOSER = np.dtype([("removed", "<u8"), ("kept", "<u8")])
_DIGEST = np.dtype([("key", "<u8"), ("rest", "<u8", (3,)), ("code", "<u8")])


def codes_of(held_out: NDArray[np.bool_], partition: int) -> NDArray[np.uint64]:
    """The code of each row of a partition."""
    rows = np.arange(len(held_out), dtype=np.uint64) | np.uint64(partition) << _PARTITION
    return np.where(held_out, rows, rows | _TRAIN)


def partitions_of(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The partition of each code."""
    return ((codes & ~_TRAIN) >> _PARTITION).astype(np.int64)


def rows_of(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The row of each code in its partition."""
    return (codes & np.uint64((1 << 40) - 1)).astype(np.int64)


def is_held_out(codes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each code is of a held-out document."""
    return codes < _TRAIN


def slices_of(entries: NDArray[Any], field: str, partition: int) -> list[slice]:
    """Where a partition's codes lie in entries sorted by them: the held-out documents, those for training."""
    bounds = np.array([partition, partition + 1], np.uint64) << _PARTITION
    return [slice(*(lower_bound(entries, field, bound | side) for bound in bounds)) for side in (np.uint64(0), _TRAIN)]


def lower_bound(entries: NDArray[Any], field: str, value: Any) -> int:
    """As np.searchsorted(entries[field], value), which would read all of a memory-mapped file."""
    return bisect_left(entries, value, key=lambda entry: entry[field])


def gather(folder: Path, *, partition: int, num_partitions: int, shards: Sequence[str]) -> dict[str, Any]:
    """Task: the records of one partition from all shards, sorted by id; of equal ids the first that was read stays."""
    batches = [batch for shard in shards for batch in read_chunks(Path(shard), partition, num_partitions)]
    table = pa.Table.from_batches(batches, SCHEMA).combine_chunks()
    del batches
    sides = pc.if_else(table.column("held_out"), 0, 1)
    keys = pa.table({"id": table.column("id"), "side": sides, "order": table.column("order")})
    rows = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy().astype(np.int64)

    stages, ids = table.column("stage").take(pa.array(rows)), np.array(table.column("id").to_pylist(), object)[rows]
    # What could not be read is no document, whatever its id.
    documents = np.flatnonzero(pc.fill_null(pc.not_equal(stages, READ), True).to_numpy())
    repeated = np.zeros(len(ids), bool)
    repeated[documents[1:]] = ids[documents[1:]] == ids[documents[:-1]]
    redactions: Counter[str] = Counter()
    for found in table.column("redactions").take(pa.array(rows[~repeated])).drop_null().to_pylist():
        redactions.update(json.loads(found))

    alive = pc.is_null(stages).to_numpy() & ~repeated
    write_rows(folder / ALIVE, table.select(_ALIVE_COLUMNS), rows[alive], compressed=False)
    gone = table.select(GONE_COLUMNS)
    write_rows(folder / GONE, gone, rows[~alive & ~repeated], compressed=True)
    twice = _read_twice(table.take(pa.array(rows[repeated]))).select(GONE_COLUMNS)
    write_rows(folder / TWICE, twice, np.arange(twice.num_rows), compressed=True)
    held_out = table.column("held_out").to_numpy()[rows[alive]]
    hashes = table.column("text_sha256").take(pa.array(rows[alive])).to_pylist()
    _write_digests(folder, hashes, codes_of(held_out, partition))
    return {"documents": len(hashes), "redactions": dict(redactions)}


def _read_twice(table: pa.Table) -> pa.Table:
    """These rows rejected as read twice, as they were read."""
    fresh = []
    for row in table.to_pylist():
        row |= json.loads(row["original"] or "{}")
        evidence = json.dumps({"kept": row["id"]}, sort_keys=True)
        fresh.append(row | {"stage": READ, "reason": "read twice", "evidence": evidence, "overlap": None})
    return pa.Table.from_pylist(fresh, SCHEMA)


def _write_digests(folder: Path, hexadecimal: list[str], codes: NDArray[np.uint64]) -> None:
    digests = np.frombuffer(bytes.fromhex("".join(hexadecimal)), ">u8").reshape(-1, 4)
    entries = np.empty(len(codes), _DIGEST)
    entries["key"], entries["rest"], entries["code"] = digests[:, 0], digests[:, 1:], codes
    np.save(folder / DIGESTS, entries[np.argsort(entries["key"], kind="stable")])


def exact_duplicates(folder: Path, *, part: int, num_parts: int, partitions: Sequence[str]) -> dict[str, Any]:
    """Task: the exact duplicates whose hashes lie in one of `num_parts` ranges; of equal texts the first stays."""
    low, high = (np.uint64(min(at * 2**64 // num_parts, 2**64 - 1)) for at in (part, part + 1))
    found = []
    for partition in partitions:
        entries = np.load(Path(partition) / DIGESTS, mmap_mode="r")
        end = len(entries) if part + 1 == num_parts else lower_bound(entries, "key", high)
        found.append(np.array(entries[lower_bound(entries, "key", low) : end]))
    entries = np.concatenate(found) if found else np.empty(0, _DIGEST)
    _, inverse, counts = np.unique(entries["key"], return_inverse=True, return_counts=True)
    entries = entries[counts[inverse] > 1]
    rest = entries["rest"]
    entries = entries[np.lexsort((entries["code"], rest[:, 2], rest[:, 1], rest[:, 0], entries["key"]))]
    same = np.zeros(len(entries), bool)
    same[1:] = (entries["key"][1:] == entries["key"][:-1]) & np.all(entries["rest"][1:] == entries["rest"][:-1], axis=1)
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(entries))))
    losers = np.empty(int(np.count_nonzero(same)), LOSER)
    losers["removed"], losers["kept"] = entries["code"][same], entries["code"][firsts[same]]
    np.save(folder / LOSERS, losers[np.argsort(losers["removed"])])
    return {"removed": len(losers)}


def losers_of(partition: int, exact: Sequence[str]) -> NDArray[Any]:
    """The exact duplicates among a partition's documents, by code."""
    found = []
    for folder in exact:
        losers = np.load(Path(folder) / LOSERS, mmap_mode="r")
        found += [np.array(losers[part]) for part in slices_of(losers, "removed", partition)]
    losers = np.concatenate(found) if found else np.empty(0, LOSER)
    return losers[np.argsort(losers["removed"])]


def read_column(folder: str | Path, name: str) -> pa.ChunkedArray:
    """A column of a partition's documents that are in."""
    reader = open_table(Path(folder) / ALIVE)
    chunks = [reader.get_batch(index).column(name) for index in range(reader.num_record_batches)]
    return pa.chunked_array(chunks, SCHEMA.field(name).type)


def read_rows(folder: str | Path, name: str, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """Some rows, ascending, of a column of a partition's documents that are in; only these are read."""
    reader = open_table(Path(folder) / ALIVE)
    chunks, first = [], 0
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if high > low:
            chunks.append(batch.column(name).take(pa.array(rows[low:high] - first)))
        first += batch.num_rows
    return pa.chunked_array(chunks, SCHEMA.field(name).type)
