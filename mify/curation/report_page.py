"""`report.html` of a curation: one self-contained page made from the report alone, equal for equal reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mify.curation.config import CurationConfig, config_to_toml
from mify.curation.tables import decontamination_notes, largest_first, lost_at, near_duplicate_notes, other_notes
from mify.files import atomic_file
from mify.page import render
from mify.typed_tree import build, to_plain

MAX_ROWS = 40
_WIDTH, _HEIGHT, _LEFT, _TOP = 576, 140, 44, 10


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """The page as HTML."""
    config = build(CurationConfig, report["config"])
    reasons = [(row["stage"], reason, count) for row in report["stages"] for reason, count in row["reasons"].items()]
    reasons.sort(key=lambda entry: (-entry[2]["documents"], entry[0], entry[1]))
    found = report["decontamination"]
    licenses = sorted(report["train"]["licenses"].items(), key=lambda pair: (-pair[1]["documents"], pair[0]))
    return render(
        "mify.curation",
        "report.html.jinja",
        report=report,
        lead=_lead(report),
        tiles=_tiles(report),
        reasons=reasons,
        rules=_rules(report),
        sources=largest_first(report["sources"]),
        languages=largest_first(report["languages"]),
        # Where a source is one repository, the same rows twice would say nothing.
        repos=largest_first(report["repos"]) if report["repos"] != report["sources"] else [],
        size=_size,
        lost_at=lost_at,
        curve=_curve(report["near_duplicates"]),
        near_notes=near_duplicate_notes(report["near_duplicates"]),
        decontamination_notes=decontamination_notes(found),
        matched=found["matches"]["documents"] if found else [],
        other_notes=other_notes(report),
        # In the configuration's order: JSON sorts its keys.
        domains=[(name, report["mixture"]["domains"][name]) for name in to_plain(config.mixture)],
        licenses=licenses,
        configuration=config_to_toml(config),
        max_rows=MAX_ROWS,
    )


def _size(num_bytes: int) -> str:
    """1.8 MB, 34 kB: three digits at most."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _lead(report: Mapping[str, Any]) -> str:
    entered, sources = report["totals"]["in"], report["sources"]
    named = ", ".join(name for name, _ in largest_first(sources)[:3])
    more = f" and {len(sources) - 3} more sources" if len(sources) > 3 else ""
    return f"{entered['documents']:,} documents, {_size(entered['bytes'])}, from {named}{more}."


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    totals = report["totals"]
    rejected = {row["stage"]: row["rejected"]["documents"] for row in report["stages"]}
    duplicates = rejected["exact duplicates"] + rejected["near duplicates"]
    return [
        (f"{totals['kept']['documents']:,}", "documents kept"),
        (_size(totals["kept"]["bytes"]), "of text kept"),
        (f"{totals['kept']['documents'] / max(1, totals['in']['documents']):.0%}", "of the documents"),
        (f"{duplicates:,}", "duplicates removed"),
        (f"{rejected['decontamination']:,}", "overlap a benchmark"),
        (f"{sum(report['redactions'].values()):,}", "places redacted"),
    ]


def _rules(report: Mapping[str, Any]) -> list[tuple[str, Any, Mapping[str, int]]]:
    """(rule, limit, counts), the most costly first."""
    rows = []
    for rule, counts in report["quality_rules"].items():
        kind, name = rule.split("/")
        limit = report["config"]["quality"][kind][name]
        rows.append((rule, f"{limit:,}" if isinstance(limit, int) and not isinstance(limit, bool) else limit, counts))
    return sorted(rows, key=lambda row: (-row[2]["failed"], row[0]))


def _curve(near: Mapping[str, Any]) -> dict[str, Any] | None:
    """1 - (1 - J^r)^b over J as the points of an SVG line, and where the threshold lies."""
    if not near["enabled"]:
        return None
    from mify.curation.minhash import collision_probability

    points = []
    for step in range(101):
        found = collision_probability(step / 100, near["bands"], near["rows"])
        points.append(f"{_LEFT + _WIDTH * step / 100:.1f},{_TOP + _HEIGHT * (1 - found):.1f}")
    threshold = near["jaccard_threshold"]
    return {
        "points": " ".join(points),
        "x": f"{_LEFT + _WIDTH * threshold:.1f}",
        "label": f"threshold {threshold:g}: {near['probability_at_threshold']:.5f}",
    }
