"""The account of a curation: what went in, what each stage dropped and why, what stayed, by source and language.

Everything is counted in documents and in bytes of the text as it was read (redaction comes later), so that at every
line in = kept + rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mify.curation.documents import Document, Rejected
from mify.curation.stages import LICENSE, STAGES
from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Item:
    """A document on its way: its size as read, and the side of the split on which it stands."""

    document: Document
    num_bytes: int
    held_out: bool


@dataclass(frozen=True)
class Dropped:
    """A rejected document with its size as read."""

    rejected: Rejected
    num_bytes: int
    held_out: bool


Count = dict[str, int]


def count(sizes: Iterable[int]) -> Count:
    """{"documents", "bytes"} of some documents' sizes."""
    sizes = list(sizes)
    return {"documents": len(sizes), "bytes": sum(sizes)}


def account(kept: list[Item], dropped: list[Dropped]) -> dict[str, Any]:
    """The funnel by stage and reason, and the same totals by split, source, repository, domain and language."""
    return {
        "totals": _totals(kept, dropped),
        "stages": _stages(kept, dropped),
        "splits": _by(kept, dropped, lambda _, held_out: "held-out" if held_out else "train"),
        "sources": _by(kept, dropped, lambda document, _: document.source),
        "repos": _by(kept, dropped, lambda document, _: document.repo),
        "domains": _by(kept, dropped, lambda document, _: document.domain),
        "languages": _by(kept, dropped, lambda document, _: document.language),
    }


def _totals(kept: list[Item], dropped: list[Dropped]) -> dict[str, Any]:
    stayed, went = count(item.num_bytes for item in kept), count(item.num_bytes for item in dropped)
    return {"in": {key: stayed[key] + went[key] for key in stayed}, "kept": stayed, "rejected": went}


def _stages(kept: list[Item], dropped: list[Dropped]) -> list[dict[str, Any]]:
    rows = []
    remaining = _totals(kept, dropped)["in"]
    for stage in STAGES:
        here = [item for item in dropped if item.rejected.stage == stage]
        reasons = {
            reason: count(item.num_bytes for item in here if item.rejected.reason == reason)
            for reason in sorted({item.rejected.reason for item in here})
        }
        rejected = count(item.num_bytes for item in here)
        after = {key: remaining[key] - rejected[key] for key in remaining}
        rows.append({"stage": stage, "in": remaining, "rejected": rejected, "kept": after, "reasons": reasons})
        remaining = after
    return rows


def _by(kept: list[Item], dropped: list[Dropped], key: Callable[[Document, bool], str]) -> dict[str, Any]:
    groups: dict[str, tuple[list[Item], list[Dropped]]] = {}
    for item in kept:
        groups.setdefault(key(item.document, item.held_out), ([], []))[0].append(item)
    for drop in dropped:
        groups.setdefault(key(drop.rejected.document, drop.held_out), ([], []))[1].append(drop)
    table = {}
    for name in sorted(groups):
        stayed, went = groups[name]
        stages = Counter(drop.rejected.stage for drop in went)
        table[name] = _totals(stayed, went) | {"rejected_by_stage": dict(sorted(stages.items()))}
    return table


def reconcile(report: Mapping[str, Any], num_in: int, bytes_in: int) -> None:
    """Raises `RuntimeError` where the account does not add up to what was counted at the entrance."""
    totals = report["totals"]
    stages = report["stages"]
    reasons = [count for stage in stages for count in stage["reasons"].values()]
    for key, entered in (("documents", num_in), ("bytes", bytes_in)):
        rejected = sum(count[key] for count in reasons)
        if not entered == totals["in"][key] == totals["kept"][key] + rejected == stages[-1]["kept"][key] + rejected:
            raise RuntimeError(
                f"the account of {key} does not add up: {entered} in, {totals['kept'][key]} kept, {rejected} rejected"
            )


def guard_sources(report: Mapping[str, Any], max_loss: float, min_documents: int) -> None:
    """Raises `MifyError` where a source lost more than `max_loss` of its documents."""
    for name, row in report["sources"].items():
        entered, lost = row["in"]["documents"], row["rejected"]["documents"]
        if entered >= min_documents and lost > max_loss * entered:
            stages = sorted(row["rejected_by_stage"].items(), key=lambda pair: (-pair[1], pair[0]))
            remedy = (
                "see why with --dry-run; mend the rule, or allow it with guard.max_source_loss in the configuration"
            )
            if stages[0][0] == LICENSE:
                remedy = (
                    "put its LICENSE file into the folder, or take unknown licenses knowingly: --config with"
                    ' license.unknown = "accept"'
                )
            raise MifyError(
                f"the source {name} loses {lost:,} of {entered:,} documents ({lost / entered:.1%}), more than"
                f" {max_loss:.0%}: " + ", ".join(f"{stage} {number:,}" for stage, number in stages[:4]),
                remedy,
            )


def funnel_table(report: Mapping[str, Any]) -> Table:
    """The funnel as a table for the terminal: a line per stage, its most frequent reasons beside it."""
    from rich.table import Table

    table = Table(title="curation", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("stage")
    for name in ("in", "rejected", "kept", "kept MB"):
        table.add_column(name, justify="right")
    table.add_column("most frequent reasons", overflow="fold")
    for row in report["stages"]:
        reasons = sorted(row["reasons"].items(), key=lambda pair: (-pair[1]["documents"], pair[0]))
        shown = [f"{reason} {number['documents']:,}" for reason, number in reasons[:3]]
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
