"""What the account of a curation (`tally.py`) must hold: totals that add up, and no source that vanishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mify.curation.stages import LICENSE
from mify.errors import MifyError


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
