"""The stages that look at one document at a time: license, language, generated code, quality, syntax, personal
data, toxicity.

They run in this order and stop at the first that rejects. They share nothing between documents, so they run in as
many processes as there are, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mify.curation.config import CurationConfig
from mify.curation.documents import Document, Rejected
from mify.curation.language_guess import language_by_content
from mify.curation.languages import UNKNOWN, domain_of, language_of
from mify.curation.license_texts import notice_license
from mify.curation.licenses import decide, header_license, is_vendored
from mify.curation.personal_data import apply_rules
from mify.curation.quality import content_problem, generated_marker, quality_findings
from mify.curation.syntax import syntax_finding
from mify.curation.toxicity import most_toxic

READ = "read"
LICENSE = "license"
LANGUAGE = "language"
GENERATED = "generated"
QUALITY = "quality"
SYNTAX = "syntax"
PERSONAL_DATA = "personal data"
TOXICITY = "toxicity"
EXACT_DUPLICATES = "exact duplicates"
DECONTAMINATION = "decontamination"
NEAR_DUPLICATES = "near duplicates"
# Decontamination comes before near-duplicates: so what a near-duplicate is removed for is a document that stays.
STAGES = (
    READ, LICENSE, LANGUAGE, GENERATED, QUALITY, SYNTAX, PERSONAL_DATA, TOXICITY, EXACT_DUPLICATES,
    DECONTAMINATION, NEAR_DUPLICATES,
)  # fmt: skip


class Rejection(NamedTuple):
    """Stage, reason and what was seen."""

    stage: str
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the stages say of one document.

    Args:
        rejection: why it is dropped, None where it passes.
        changes: fields that a stage corrected: license, language, domain, text (redacted).
        redactions: number of redacted places by kind.
    """

    rejection: Rejection | None
    changes: dict[str, str] = field(default_factory=dict)
    redactions: dict[str, int] = field(default_factory=dict)

    def apply(self, document: Document) -> Document:
        """The document with the corrected fields."""
        changes = dict(self.changes)
        text = changes.pop("text", None)
        document = replace(document, **changes) if changes else document
        return document if text is None else document.with_text(text)


def examine(document: Document, config: CurationConfig) -> Verdict:
    """Runs the stages on one document."""
    changes: dict[str, str] = {}
    if (rejection := _license(document, config, changes)) is not None:
        return Verdict(rejection, changes)
    if (rejection := _language(document, config, changes)) is not None:
        return Verdict(rejection, changes)
    language = changes.get("language", document.language)
    if config.reject_generated and (marker := generated_marker(document.text)) is not None:
        return Verdict(Rejection(GENERATED, "generated marker", {"marker": marker}), changes)
    findings = quality_findings(document.text, language, config.quality)
    if (finding := next((finding for finding in findings if not finding.passed), None)) is not None:
        # All that fail are named: which rule costs what shows only where it fails alone.
        also = [other.rule for other in findings if not other.passed]
        evidence = {"value": finding.value, "limit": finding.limit} | ({"also": also} if also else {})
        return Verdict(Rejection(QUALITY, finding.rule, evidence), changes)
    if (finding := syntax_finding(document.text, language, config.syntax, document.path)) is not None:
        return Verdict(Rejection(SYNTAX, finding.rule, {"value": finding.value, "limit": finding.limit}), changes)
    text, redactions, dropped = apply_rules(document.text, language, config.personal_data)
    if dropped is not None:
        # The evidence names the place, never the secret itself.
        evidence = {"start": dropped.start, "end": dropped.end}
        return Verdict(Rejection(PERSONAL_DATA, dropped.kind, evidence), changes)
    if config.toxicity.enabled and changes.get("domain", document.domain) in config.toxicity.domains:
        ((probability, sentence),) = most_toxic([text])
        if probability >= config.toxicity.threshold:
            evidence = {"value": round(probability, 4), "limit": config.toxicity.threshold, "sentence": sentence}
            return Verdict(Rejection(TOXICITY, "insult or obscenity", evidence), changes)
    if redactions:
        changes["text"] = text
    return Verdict(None, changes, dict(redactions))


def _license(document: Document, config: CurationConfig, changes: dict[str, str]) -> Rejection | None:
    # What a file says of itself goes before what its folder or package says of it.
    license = header_license(document.text) or notice_license(document.text) or document.license
    if license != document.license:
        changes["license"] = license
    decision = decide(license, config.license)
    if decision.accepted:
        return None
    if license == UNKNOWN:
        vendored = is_vendored(document.path)
        reason = "unknown license of vendored code" if vendored else "unknown license"
        return Rejection(LICENSE, reason, {"license": license})
    return Rejection(LICENSE, "license not allowed", {"license": license, "categories": dict(decision.categories)})


def _language(document: Document, config: CurationConfig, changes: dict[str, str]) -> Rejection | None:
    language = document.language
    if language == UNKNOWN:
        found: str | None = language_of(document.path, document.text)
        if found == UNKNOWN and config.language.by_content:
            found = language_by_content(document.text)
        if found not in (None, UNKNOWN):
            language = changes["language"] = found
            # "code" is what a reader says of a document whose language it does not know.
            if document.domain == "code":
                changes["domain"] = domain_of(language)
    if language == UNKNOWN and config.language.unknown == "reject":
        return Rejection(LANGUAGE, "unknown language", {"path": document.path})
    if config.language.allow and language not in config.language.allow:
        return Rejection(LANGUAGE, "language not allowed", {"language": language})
    if (problem := content_problem(document.text, language)) is not None:
        return Rejection(LANGUAGE, problem[0], problem[1])
    return None


def reject(document: Document, rejection: Rejection) -> Rejected:
    """The record of a rejection."""
    return Rejected.create(document, *rejection)
