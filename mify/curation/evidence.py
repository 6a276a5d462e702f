"""What is stored of a rejection whose reason is another text: the document that stays, or the benchmark's spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mify.curation.stages import DECONTAMINATION, EXACT_DUPLICATES, NEAR_DUPLICATES, Rejection

if TYPE_CHECKING:
    from mify.curation.decontamination import Span

# Spans of a benchmark that are stored as evidence; all are counted.
_SHOWN_SPANS = 20


class Kept(NamedTuple):
    """A document that stays, as evidence names it."""

    id: str
    repo: str
    path: str
    held_out: bool


def exact_duplicate(kept: Kept, held_out: bool) -> Rejection:
    """The rejection of a document (`held_out`: on that side) with the same text as `kept`."""
    return _duplicate(EXACT_DUPLICATES, "exact duplicate", kept, held_out, {})


def near_duplicate(kept: Kept, held_out: bool, jaccard: float) -> Rejection:
    """The rejection of a document whose text is similar to that of `kept`."""
    return _duplicate(NEAR_DUPLICATES, "near duplicate", kept, held_out, {"jaccard": round(jaccard, 6)})


def overlap(spans: Sequence[Span]) -> Rejection:
    """The first spans that stand in a benchmark, their number, and all tasks that have one."""
    shown = [
        {"start": span.start, "end": span.end, "benchmark": span.benchmark, "task": span.task, "text": span.text[:200]}
        for span in spans[:_SHOWN_SPANS]
    ]
    tasks = {name: sorted({span.task for span in spans if span.benchmark == name}) for name in benchmarks(spans)}
    reason = f"overlaps {spans[0].benchmark}"
    return Rejection(DECONTAMINATION, reason, {"spans": shown, "count": len(spans), "tasks": tasks})


def benchmarks(spans: Sequence[Span]) -> list[str]:
    """The names of the benchmarks in which spans stand, sorted."""
    return sorted({span.benchmark for span in spans})


def _duplicate(stage: str, reason: str, kept: Kept, held_out: bool, evidence: Mapping[str, Any]) -> Rejection:
    if kept.held_out and not held_out:
        reason += " of a held-out document"
    return Rejection(stage, reason, {"kept": kept.id, "kept_repo": kept.repo, "kept_path": kept.path, **evidence})
