"""Why a document was kept or dropped: looked up in the files of a finished curation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mify.curation.documents import Document, read_documents, read_rejected
from mify.curation.pipeline import DOCUMENTS, HELD_OUT, REJECTED, load_report
from mify.errors import MifyError

MIN_PREFIX = 4


@dataclass(frozen=True)
class Explanation:
    """What became of a document.

    Args:
        document: as it was kept or dropped.
        outcome: "kept for training", "kept, held out", or "rejected".
        stage, reason: of the rejection, "" for a kept document.
        evidence: what the rule saw.
        removed_for_it: near and exact duplicates that were dropped because this document stays, as (path, evidence).
    """

    document: Document
    outcome: str
    stage: str
    reason: str
    evidence: dict[str, Any]
    removed_for_it: tuple[tuple[str, dict[str, Any]], ...]

    def lines(self) -> list[str]:
        """For people: one fact a line."""
        document = self.document
        lines = [
            f"{document.id}",
            f"  {document.repo}/{document.path} of {document.source}",
            f"  {document.domain}, {document.language}, {document.license}, {document.num_bytes:,} bytes",
            f"  {self.outcome}" + (f" at stage {self.stage}: {self.reason}" if self.stage else ""),
        ]
        lines += [f"    {key}: {_shown(value)}" for key, value in self.evidence.items()]
        for path, evidence in self.removed_for_it:
            jaccard = f" (Jaccard {evidence['jaccard']})" if "jaccard" in evidence else ""
            lines.append(f"  it stays for {path}{jaccard}")
        return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def explain(folder: Path, wanted: str) -> list[Explanation]:
    """What became of the documents whose id begins with `wanted`, or whose path is or ends with it.

    Raises:
        MifyError: `folder` holds no finished curation, `wanted` is too short, or nothing matches.
    """
    load_report(folder)
    if len(wanted) < MIN_PREFIX:
        raise MifyError(f"--explain {wanted!r} is too short", f"give {MIN_PREFIX} or more digits of the id, or a path")

    def matches(document: Document) -> bool:
        by_path = document.path == wanted or document.path.endswith("/" + wanted)
        return document.id.startswith(wanted) or by_path or f"{document.repo}/{document.path}" == wanted

    kept = [(document, outcome) for document, outcome in _kept(folder) if matches(document)]
    ids = {document.id for document, _ in kept}
    rejected: list[Explanation] = []
    removed: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for item in read_rejected(folder / REJECTED):
        evidence = json.loads(item.evidence)
        if evidence.get("kept") in ids:
            removed.setdefault(evidence["kept"], []).append((f"{item.document.repo}/{item.document.path}", evidence))
        if matches(item.document):
            rejected.append(Explanation(item.document, "rejected", item.stage, item.reason, evidence, ()))
    found = [
        Explanation(document, outcome, "", "", {}, tuple(removed.get(document.id, ()))) for document, outcome in kept
    ]
    if not found and not rejected:
        raise MifyError(f"no document of {folder} has an id or path like {wanted!r}", "ids stand in documents.parquet")
    return found + rejected


def _kept(folder: Path) -> Iterator[tuple[Document, str]]:
    for document in read_documents(folder / DOCUMENTS):
        yield document, "kept for training"
    if (folder / HELD_OUT).exists():
        for document in read_documents(folder / HELD_OUT):
            yield document, "kept, held out"
