"""What a curation did, for the terminal: the funnel, the sources and languages, the composition, and notes in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mify.curation.stages import QUALITY

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Rows of a breakdown in the terminal; the page and report.json hold all.
MAX_ROWS = 12


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """All tables that have something to tell, and the notes."""
    console.print(funnel_table(report))
    for key, title in (("sources", "source"), ("languages", "language")):
        if len(report[key]) > 1:
            console.print(breakdown_table(report, key, title))
    console.print(composition_table(report))
    for note in notes(report):
        console.print(f"- {note}", highlight=False)


def funnel_table(report: Mapping[str, Any]) -> Table:
    """The funnel as a table for the terminal: a line per stage, its most frequent reasons beside it."""
    from rich.table import Table

    table = Table(title="curation", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("stage")
    for name in ("in", "rejected", "kept", "kept MB"):
        table.add_column(name, justify="right")
    table.add_column("most frequent reasons", overflow="fold")
    for row in report["stages"]:
        counts: Counter[str] = Counter()
        for reason, number in row["reasons"].items():
            # The line is short: quality rules go without the name of their set.
            counts[reason.rpartition("/")[2] if row["stage"] == QUALITY else reason] += number["documents"]
        reasons = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{reason} {count:,}" for reason, count in reasons[:3]]
        if len(reasons) > 3:
            shown[-1] += f" and {len(reasons) - 3} more"
        table.add_row(
            row["stage"],
            f"{row['in']['documents']:,}",
            f"{row['rejected']['documents']:,}",
            f"{row['kept']['documents']:,}",
            f"{row['kept']['bytes'] / 1e6:.1f}",
            "\n".join(shown),
        )
    return table


def composition_table(report: Mapping[str, Any]) -> Table:
    """What the corpus is made of: kept bytes per domain beside the share it is trained at."""
    from rich.table import Table

    table = Table(title="composition", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("domain")
    for name in ("documents", "MB", "share", "trained at", "repeated"):
        table.add_column(name, justify="right")
    for domain, row in report["mixture"]["domains"].items():
        table.add_row(
            domain,
            f"{report['train']['domains'].get(domain, {'documents': 0})['documents']:,}",
            f"{row['available_bytes'] / 1e6:.1f}",
            f"{row['available_share']:.1%}",
            f"{row['target_share']:.1%}",
            f"{row['repeat_factor']:.2f}×",
        )
    return table


def breakdown_table(report: Mapping[str, Any], key: str, title: str, max_rows: int = MAX_ROWS) -> Table:
    """What came in, stayed and went by source, repository, domain or language; the largest first."""
    from rich.table import Table

    table = Table(title=f"by {title}", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("in", "kept", "kept MB", "lost"):
        table.add_column(name, justify="right")
    table.add_column("lost at", overflow="fold")
    rows = largest_first(report[key])
    for name, row in rows[:max_rows]:
        table.add_row(
            name,
            f"{row['in']['documents']:,}",
            f"{row['kept']['documents']:,}",
            f"{row['kept']['bytes'] / 1e6:.1f}",
            f"{row['rejected']['documents'] / max(1, row['in']['documents']):.0%}",
            lost_at(row),
        )
    if len(rows) > max_rows:
        table.add_row(f"and {len(rows) - max_rows} more", "", "", "", "", "")
    return table


def largest_first(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, row) of a breakdown, by the documents that came in."""
    return sorted(rows.items(), key=lambda pair: (-pair[1]["in"]["documents"], pair[0]))


def lost_at(row: Mapping[str, Any]) -> str:
    """The stages at which a row of a breakdown lost most, with their numbers."""
    lost = sorted(row["rejected_by_stage"].items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{stage} {count:,}" for stage, count in lost[:3])


def notes(report: Mapping[str, Any]) -> list[str]:
    """In words: what the search for near-duplicates can miss, what overlaps a benchmark, what nothing checked."""
    return [
        *near_duplicate_notes(report["near_duplicates"]),
        *decontamination_notes(report["decontamination"]),
        *other_notes(report),
    ]


def near_duplicate_notes(near: Mapping[str, Any]) -> list[str]:
    """With which probability pairs are found, and what was not compared or not verified."""
    if not near["enabled"]:
        return ["Near-duplicates were not looked for."]
    said = [
        f"Near-duplicates: {near['bands']} bands of {near['rows']} of {near['num_perm']} values; a pair at Jaccard"
        f" {near['jaccard_threshold']} is found with probability {near['probability_at_threshold']:.5f}."
        f" {near['candidate_pairs']:,} candidate pairs, {near['verified_pairs']:,} compared exactly."
    ]
    if not near["verified"]:
        said.append(
            "Near-duplicates were not verified: the share of equal signature values decided, with a standard error of"
            f" {near['estimate_standard_error']:.3f}, so some pairs below the threshold went and some above it stayed."
        )
    if near["capped_buckets"]:
        said.append(
            f"{near['capped_buckets']:,} crowded buckets compared the first {near['bucket_cap']:,} documents only; by a"
            f" sample, about {near['estimated_lost_pairs']:.0f} of {near['skipped_pairs']:,} pairs left out were"
            " near-duplicates that stayed."
        )
    return said


def decontamination_notes(found: Mapping[str, Any]) -> list[str]:
    """What was looked for, and what was found."""
    if not found:
        return ["Nothing was decontaminated: no benchmark was named."]
    indexed = ", ".join(f"{name} ({_tasks(row['tasks'])})" for name, row in found["benchmarks"].items())
    matched = ", ".join(
        f"{row['documents']:,} with {_tasks(len(row['tasks']))} of {name}"
        for name, row in found["matches"]["benchmarks"].items()
    )
    return [f"Decontaminated against {indexed}: {'dropped ' + matched if matched else 'no document overlaps'}."]


def _tasks(count: int) -> str:
    return f"{count:,} task" + ("" if count == 1 else "s")


def other_notes(report: Mapping[str, Any]) -> list[str]:
    """Languages whose syntax nothing checked, redactions, and what the mixture repeats."""
    return [*_tools(report["tools"]), *_redactions(report["redactions"]), _sentence(report["mixture"]["statement"])]


def _tools(tools: Mapping[str, Any]) -> list[str]:
    unchecked = sorted(tools["syntax"]["unchecked"].items(), key=lambda pair: (-pair[1], pair[0]))
    if not unchecked:
        return []
    named = ", ".join(f"{language} {count:,}" for language, count in unchecked[:6])
    more = f" and {len(unchecked) - 6} more languages" if len(unchecked) > 6 else ""
    without = "" if len(tools["syntax"]["checked"]) > 1 else " (pip install 'mify[curation]' for eleven languages)"
    return [f"No grammar checked the syntax of: {named}{more}{without}."]


def _redactions(redactions: Mapping[str, int]) -> list[str]:
    named = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in redactions.items())
    return [f"Redacted: {named}."] if named else []


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
