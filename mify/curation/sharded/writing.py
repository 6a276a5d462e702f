"""The last step: the output files, each a range of ids, sorted by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mify.curation.documents import CLUSTERS_FORMAT, COLUMNS, FORMAT, REJECTED_FORMAT
from mify.curation.outputs import OutputFormat, open_writer
from mify.curation.sharded.deciding import GROUPED, KEPT, REJECTED
from mify.curation.sharded.partitions import ALIVE
from mify.curation.sharded.records import batches, open_table, partition_of

# The format of each kind of output that does not hold documents.
STORED = {"rejected": REJECTED_FORMAT, "clusters": CLUSTERS_FORMAT}


def write(
    folder: Path,
    *,
    kind: str,
    name: str,
    form: OutputFormat,
    part: int,
    num_parts: int,
    gathered: Sequence[str],
    decided: Sequence[str],
) -> dict[str, Any]:
    """Task: one output file.

    Args:
        kind: "documents", "held_out", "rejected" or "clusters".
        name: of the file.
        form: its format.
        part, num_parts: which of so many equal ranges of ids.
        gathered, decided: the folders of all partitions.
    """
    tables = {"rejected": _rejected, "clusters": _grouped}.get(kind, _kept)
    overlapping = [
        home
        for home in range(len(gathered))
        # Partition h holds [h / H, (h + 1) / H) of the ids.
        if home * num_parts < (part + 1) * len(gathered) and (home + 1) * num_parts > part * len(gathered)
    ]

    def selected(columns: Sequence[str]) -> Iterator[pa.Table]:
        for home in overlapping:
            for batch in tables(gathered[home], decided[home], kind == "held_out"):
                if num_parts > 1:
                    batch = batch.filter(pa.array(partition_of(batch.column("id").to_pylist(), num_parts) == part))
                if batch.num_rows:
                    yield batch.select(list(columns))

    stored = STORED.get(kind, FORMAT)
    fields = COLUMNS[stored]
    rows = sum(batch.num_rows for batch in selected(["id"]))
    with open_writer(folder / name, form, stored, rows) as writer:
        for batch in selected(fields):
            writer.add(pa.Table.from_batches([batch]))
    return {"rows": rows}


def _kept(gathered: str, decided: str, held_out: bool) -> Iterator[pa.RecordBatch]:
    """What a partition keeps on one side, batch by batch."""
    kept: NDArray[np.int64] = np.load(Path(decided) / KEPT)
    reader = open_table(Path(gathered) / ALIVE)
    begin = 0
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        low, high = np.searchsorted(kept, [begin, begin + batch.num_rows])
        chosen = np.zeros(batch.num_rows, bool)
        chosen[kept[low:high] - begin] = True
        chosen &= batch.column("held_out").to_numpy(zero_copy_only=False) == held_out
        begin += batch.num_rows
        yield batch.filter(pa.array(chosen))


def _grouped(gathered: str, decided: str, held_out: bool) -> Iterator[pa.RecordBatch]:
    """The clusters of a partition's documents."""
    return batches(Path(decided) / GROUPED)


def _rejected(gathered: str, decided: str, held_out: bool) -> Iterator[pa.RecordBatch]:
    """What a partition rejects, on both sides, batch by batch."""
    return batches(Path(decided) / REJECTED)
