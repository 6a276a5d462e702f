"""Why a document was kept or dropped: looked up in the files of a finished curation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mify.curation.config import CurationConfig
from mify.curation.documents import Document
from mify.curation.finished import read_dropped, read_groups, read_kept
from mify.curation.licenses import decide
from mify.curation.locations import Location
from mify.curation.pipeline import load_report
from mify.curation.quality import quality_findings
from mify.curation.syntax import checked_languages, error_fraction
from mify.curation.toxicity import most_toxic
from mify.errors import MifyError
from mify.typed_tree import build

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
        checks: of a kept document, what every stage found, a line each.
        group: (id of the first document, documents) of the group of near-duplicates it is in: for information, never
            the reason of a removal.
    """

    document: Document
    outcome: str
    stage: str
    reason: str
    evidence: dict[str, Any]
    removed_for_it: tuple[tuple[str, dict[str, Any]], ...] = ()
    checks: tuple[str, ...] = ()
    group: tuple[str, int] | None = None

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
        lines += [f"    {check}" for check in self.checks]
        for path, evidence in self.removed_for_it:
            jaccard = f" (Jaccard {evidence['jaccard']})" if "jaccard" in evidence else ""
            lines.append(f"  it stays for {path}{jaccard}")
        if self.group is not None:
            lines.append(
                f"  one of a group of {self.group[1]:,} near-duplicates, of which {self.group[0]} is the first"
            )
        return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def explain(folder: Location, wanted: str) -> list[Explanation]:
    """What became of the documents whose id begins with `wanted`, or whose path is or ends with it.

    Raises:
        MifyError: `folder` holds no finished curation, `wanted` is too short, or nothing matches.
    """
    report = load_report(folder)
    config = build(CurationConfig, report["config"])
    if len(wanted) < MIN_PREFIX:
        raise MifyError(f"--explain {wanted!r} is too short", f"give {MIN_PREFIX} or more digits of the id, or a path")

    def matches(document: Document) -> bool:
        by_path = document.path == wanted or document.path.endswith("/" + wanted)
        return document.id.startswith(wanted) or by_path or f"{document.repo}/{document.path}" == wanted

    kept = [(document, outcome) for document, outcome in read_kept(folder, report) if matches(document)]
    ids = {document.id for document, _ in kept}
    rejected: list[Explanation] = []
    removed: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for item in read_dropped(folder, report):
        evidence = json.loads(item.evidence)
        if evidence.get("kept") in ids:
            removed.setdefault(evidence["kept"], []).append((f"{item.document.repo}/{item.document.path}", evidence))
        if matches(item.document):
            rejected.append(Explanation(item.document, "rejected", item.stage, item.reason, evidence))
    found = [
        Explanation(
            document, outcome, "", "", {}, tuple(removed.get(document.id, ())), tuple(_checks(document, config))
        )
        for document, outcome in kept
    ]
    explanations = found + rejected
    if not explanations:
        raise MifyError(
            f"no document of {folder} has an id or path like {wanted!r}", "ids stand in the files of documents"
        )
    groups = _groups(folder, report, {item.document.id for item in explanations})
    return [replace(item, group=groups.get(item.document.id)) for item in explanations]


def _groups(folder: Location, report: Mapping[str, Any], wanted: set[str]) -> dict[str, tuple[str, int]]:
    """Id → (first document of its group, documents in it), for those that are in one."""
    sizes: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for document, first in read_groups(folder, report):
        sizes[first] += 1
        if document in wanted:
            firsts[document] = first
    return {document: (first, sizes[first]) for document, first in firsts.items()}


def _checks(document: Document, config: CurationConfig) -> Iterator[str]:
    """What each stage finds in a document that passes them all, measured again on the text that was kept."""
    decision = decide(document.license, config.license)
    judged = ", ".join(f"{name} is {category}" for name, category in decision.categories)
    yield f"license: {judged or 'unknown licenses are accepted'}"
    findings = list(quality_findings(document.text, document.language, config.quality))
    yield f"quality: passes {len(findings)} rules"
    for finding in findings:
        sign = "of at least" if "/min_" in finding.rule else "of at most"
        known = "" if finding.rule.endswith("must_parse") else f" {sign} {_figure(finding.limit)}"
        yield f"  {finding.rule}: {_figure(finding.value)}{known}"
    if document.language in checked_languages(config.syntax):
        fraction, _ = error_fraction(document.text, document.language)
        limit = config.syntax.max_error_fraction
        yield f"syntax: the grammar cannot place {fraction:.4f} of it, of at most {limit}"
    if config.toxicity.enabled and document.domain in config.toxicity.domains:
        ((probability, _),) = most_toxic([document.text])
        yield f"toxicity: its worst sentence is at {probability:.2f}, below {config.toxicity.threshold}"
    if config.decontamination.benchmarks:
        named = ", ".join(Path(name).name for name in config.decontamination.benchmarks)
        yield f"decontamination: no {config.decontamination.ngram} words in a row with {named}"
    if config.near_duplicates.enabled:
        threshold = config.near_duplicates.jaccard_threshold
        yield f"near duplicates: none that stays was found at Jaccard {threshold} or above"


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
