"""The eighth step: for each partition what stays, what goes and why, and the counts of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mify.curation.documents import FIELDS, Document, Rejected
from mify.curation.evidence import Kept, exact_duplicate, near_duplicate
from mify.curation.findings import Findings
from mify.curation.sharded.partitions import (
    ALIVE,
    GONE,
    GONE_COLUMNS,
    TWICE,
    is_held_out,
    losers_of,
    partitions_of,
    read_column,
    read_rows,
    rows_of,
    slices_of,
)
from mify.curation.sharded.records import REJECTION, SCHEMA, open_table, read_entries, write_rows
from mify.curation.sharded.starring import CLUSTER, CLUSTERS, REMOVAL, REMOVED
from mify.curation.stages import DECONTAMINATION, QUALITY, Rejection
from mify.files import read_json, write_json

KEPT, REJECTED, GROUPED = "kept.npy", "rejected.arrow", "grouped.arrow"
TALLY, FINDINGS = "tally.arrow", "findings.json"

# What documents are counted by; null stage and reason: kept.
GROUP = ("held_out", "source", "repo", "domain", "language", "license", "stage", "reason")


def decide(
    folder: Path, *, partition: int, gathered: Sequence[str], exact: Sequence[str], star: str | None
) -> dict[str, Any]:
    """Task: the rows that a partition keeps, all its rejected records, its clusters, and its tally.

    Args:
        gathered: the folders of all partitions.
        exact: the folders of the exact duplicates.
        star: the folder of the star's removals; None where near-duplicates are not looked for.
    """
    home = Path(gathered[partition])
    reasons: dict[int, tuple[str, str, str]] = dict(_duplicates(partition, gathered, exact, star))
    overlaps = read_column(home, "overlap")
    for row in np.flatnonzero(overlaps.is_valid().to_numpy()).tolist():
        # An exact copy goes for that, and its original for the benchmark's text in it.
        reasons.setdefault(row, (DECONTAMINATION, *json.loads(overlaps[row].as_py())))
    gone_rows = np.array(sorted(reasons), np.int64)
    gone = pa.concat_tables(
        [*(_whole(home / name).select(GONE_COLUMNS) for name in (GONE, TWICE)), _gone_now(home, gone_rows, reasons)]
    ).combine_chunks()
    keys = gone.select(["id", *REJECTION])
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    write_rows(folder / REJECTED, gone, order.to_numpy().astype(np.int64), compressed=True)
    findings = Findings()
    judged = pc.is_in(gone.column("stage"), pa.array([QUALITY, DECONTAMINATION]))
    for row in gone.drop_columns(["text"]).filter(judged).to_pylist():
        document = Document(**{name: row.get(name, "") for name in FIELDS})
        findings.add(Rejected(document, *(row[name] for name in REJECTION)))
    write_json(folder / FINDINGS, findings.state())

    grouped = _clusters(partition, gathered, star)
    with pa.ipc.new_file(str(folder / GROUPED), grouped.schema) as writer:
        writer.write_table(grouped)

    held_out = read_column(home, "held_out").to_numpy()
    kept = np.setdiff1d(np.arange(len(held_out)), gone_rows)
    np.save(folder / KEPT, kept)
    held_out = held_out[kept]
    stayed = _counted(_sizes(home, kept))
    with pa.ipc.new_file(str(folder / TALLY), stayed.schema) as writer:
        writer.write_table(pa.concat_tables([stayed, _counted(_measured(gone))]).combine_chunks())
    return {
        "held_out": int(np.count_nonzero(held_out)),
        "documents": int(np.count_nonzero(~held_out)),
        "rejected": gone.num_rows,
        "grouped": grouped.num_rows,
    }


def read_tally(folder: str) -> Iterator[tuple[tuple[Any, ...], tuple[int, int, int]]]:
    """(group, (documents, bytes as read, bytes as written)) of a partition."""
    reader = open_table(Path(folder) / TALLY)
    for index in range(reader.num_record_batches):
        for row in reader.get_batch(index).to_pylist():
            yield tuple(row[name] for name in GROUP), (row["documents"], row["bytes_read"], row["bytes_written"])


def read_findings(folder: str) -> dict[str, Any]:
    """The state of a partition's `Findings`."""
    state: dict[str, Any] = read_json(Path(folder) / FINDINGS)
    return state


def _whole(path: Path) -> pa.Table:
    reader = open_table(path)
    return pa.Table.from_batches([reader.get_batch(i) for i in range(reader.num_record_batches)], reader.schema)


def _gone_now(home: Path, rows: NDArray[np.int64], reasons: Mapping[int, tuple[str, str, str]]) -> pa.Table:
    """The records of documents that were in until now."""
    columns = {name: read_rows(home, name, rows) for name in GONE_COLUMNS if name not in REJECTION}
    for place, name in enumerate(REJECTION):
        columns[name] = pa.array([reasons[row][place] for row in rows.tolist()], SCHEMA.field(name).type)
    return pa.table(columns).select(GONE_COLUMNS)


def _sizes(home: Path, rows: NDArray[np.int64]) -> pa.Table:
    """What is counted of some documents that are in: of their texts only the lengths."""
    reader = open_table(home / ALIVE)
    lengths = [pc.binary_length(reader.get_batch(i).column("text")) for i in range(reader.num_record_batches)]
    columns = {name: read_rows(home, name, rows) for name in (*GROUP[:-2], "num_bytes")}
    return pa.table(columns | {"written": pa.chunked_array(lengths, pa.int64()).take(pa.array(rows))})


def _measured(table: pa.Table) -> pa.Table:
    """A table with the lengths of its texts in their place."""
    return table.append_column("written", pc.binary_length(table.column("text"))).drop_columns(["text"])


def _counted(table: pa.Table) -> pa.Table:
    nulls = pa.nulls(table.num_rows, pa.string())
    counted = pa.table(
        {
            **{name: table.column(name) if name in table.column_names else nulls for name in GROUP},
            "read": table.column("num_bytes"),
            "written": table.column("written"),
        }
    )
    grouped = counted.group_by(list(GROUP), use_threads=False).aggregate(
        [("read", "count"), ("read", "sum"), ("written", "sum")]
    )
    names = {"read_count": "documents", "read_sum": "bytes_read", "written_sum": "bytes_written"}
    grouped = grouped.rename_columns([names.get(name, name) for name in grouped.column_names])
    return grouped.sort_by([(name, "ascending") for name in GROUP])


def _duplicates(
    partition: int, gathered: Sequence[str], exact: Sequence[str], star: str | None
) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """(row, (stage, reason, evidence)) of a partition's exact and near duplicates."""
    losers = losers_of(partition, exact)
    near: NDArray[Any] = np.empty(0, REMOVAL)
    if star is not None:
        removed = read_entries(Path(star) / REMOVED, REMOVAL)
        near = np.concatenate([removed[part] for part in slices_of(removed, "removed", partition)])
    names = _names(np.concatenate([losers["kept"], near["kept"]]), gathered)
    for row, held_out, kept in zip(
        rows_of(losers["removed"]), is_held_out(losers["removed"]), losers["kept"].tolist(), strict=True
    ):
        yield int(row), _record(exact_duplicate(names[kept], bool(held_out)))
    for row, held_out, kept, jaccard in zip(
        rows_of(near["removed"]),
        is_held_out(near["removed"]),
        near["kept"].tolist(),
        near["jaccard"].tolist(),
        strict=True,
    ):
        yield int(row), _record(near_duplicate(names[kept], bool(held_out), jaccard))


def _clusters(partition: int, gathered: Sequence[str], star: str | None) -> pa.Table:
    """(id, cluster) of a partition's documents that are not alone in their cluster, by id."""
    found: NDArray[Any] = np.empty(0, CLUSTER)
    if star is not None:
        entries = read_entries(Path(star) / CLUSTERS, CLUSTER)
        found = np.concatenate([entries[part] for part in slices_of(entries, "document", partition)])
        found = found[np.argsort(rows_of(found["document"]))]
    names = _names(found["cluster"], gathered)
    ids = read_rows(gathered[partition], "id", rows_of(found["document"]))
    clusters = pa.array([names[code].id for code in found["cluster"].tolist()], pa.string())
    return pa.table({"id": ids.combine_chunks(), "cluster": clusters})


def _record(why: Rejection) -> tuple[str, str, str]:
    """A rejection as it is stored; see `Rejected.create`."""
    return why.stage, why.reason, json.dumps(why.evidence, sort_keys=True, ensure_ascii=False)


def _names(codes: NDArray[np.uint64], gathered: Sequence[str]) -> dict[int, Kept]:
    """What evidence says of the documents of these codes, looked up in their partitions."""
    found: dict[int, Kept] = {}
    codes = np.unique(codes)
    homes = partitions_of(codes)
    for home in np.unique(homes).tolist():
        here = codes[homes == home]
        here = here[np.argsort(rows_of(here))]
        columns = [read_rows(gathered[home], name, rows_of(here)).to_pylist() for name in ("id", "repo", "path")]
        for code, id, repo, path in zip(here, *columns, strict=True):
            found[int(code)] = Kept(id, repo, path, bool(is_held_out(code)))
    return found
