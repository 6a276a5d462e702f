"""The second step: the stages that look at one document at a time, over a raw shard.

Decontamination is among them: what it finds is only noted, since exact duplicates come before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mify.curation.config import CurationConfig
from mify.curation.decontamination import NgramIndex, load_benchmark
from mify.curation.documents import FIELDS, Rejected
from mify.curation.evidence import overlap
from mify.curation.sharded.reading import read_raw, shard_name
from mify.curation.sharded.records import BATCH_BYTES, ChunkWriter, Row, batch_of, document_of
from mify.curation.stages import examine
from mify.errors import MifyError
from mify.typed_tree import build

# Text that a partition gets at once, where memory allows: readers of a partition want few, large pieces.
_CHUNK_BYTES = 64 << 10
# Text in memory at once, some three times over: at least, at most.
_FLUSH_BYTES = (4 * BATCH_BYTES, 16 * BATCH_BYTES)


def filter_shard(
    folder: Path, *, shard: int, order: int, num_partitions: int, config: Mapping[str, Any], raw: str
) -> dict[str, Any]:
    """Task: examines every record of a raw shard and hands it to its partition.

    Args:
        shard: number of the shard in its folder.
        order: what its places in the input begin with.
        config: the rules, as a dict.
        raw: the folder of the shard.
    """
    rules = _rules(json.dumps(config, sort_keys=True))
    index = _index(rules.decontamination.benchmarks, rules.decontamination.ngram)
    writer = ChunkWriter(folder, num_partitions)
    flush_bytes = min(max(_FLUSH_BYTES[0], num_partitions * _CHUNK_BYTES), _FLUSH_BYTES[1])
    rows: list[Row] = []
    pending = documents = 0
    for row in read_raw(Path(raw) / shard_name(shard)):
        row["order"] += order
        documents += 1
        pending += row["num_bytes"]
        rows.append(examined(row, rules, index))
        if pending >= flush_bytes:
            writer.flush(batch_of(rows))
            rows, pending = [], 0
    if rows:
        writer.flush(batch_of(rows))
    writer.close()
    return {"documents": documents}


def examined(row: Row, rules: CurationConfig, index: NgramIndex | None) -> Row:
    """A record after the stages.

    Raises:
        MifyError: its text is not what its hash says.
    """
    if row["stage"] is not None:
        return row
    before = document_of(row)
    if before.text_sha256 != hashlib.sha256(before.text.encode()).hexdigest():
        # Exact duplicates go by it: a wrong one would take a document along.
        raise MifyError(f"the text of document {before.id} is not the one its hash is of", "write the documents again")
    verdict = examine(before, rules)
    after = verdict.apply(before)
    changed = {name: getattr(before, name) for name in FIELDS if getattr(before, name) != getattr(after, name)}
    row = row | {name: getattr(after, name) for name in changed}
    if changed:
        row["original"] = json.dumps(changed)
    if verdict.redactions:
        row["redactions"] = json.dumps(verdict.redactions, sort_keys=True)
    if verdict.rejection is not None:
        rejected = Rejected.create(after, *verdict.rejection)
        return row | {"stage": rejected.stage, "reason": rejected.reason, "evidence": rejected.evidence}
    if index is not None and (spans := index.match(after.text)):
        found = Rejected.create(after, *overlap(spans))
        row["overlap"] = json.dumps([found.reason, found.evidence])
    return row


@lru_cache(maxsize=2)
def _rules(config: str) -> CurationConfig:
    return build(CurationConfig, json.loads(config))


@lru_cache(maxsize=2)
def _index(benchmarks: Sequence[str], ngram: int) -> NgramIndex | None:
    """Every task of a process looks into the same index."""
    if not benchmarks:
        return None
    return NgramIndex([load_benchmark(name) for name in benchmarks], ngram=ngram)
