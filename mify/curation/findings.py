"""What the rejected documents tell in sum: which quality rule costs what, and which benchmark texts were found where.

Both are read off the evidence of the single rejections, one after the other, so that any engine can add them up.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from mify.curation.documents import Rejected
from mify.curation.stages import DECONTAMINATION, QUALITY

# Documents whose matched spans stand in the report; all stand in rejected.parquet.
MAX_SHOWN = 200


class Findings:
    """Counts over rejected documents; the order in which they are added does not matter."""

    def __init__(self) -> None:
        self._failed: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._overlapping: Counter[str] = Counter()
        self._tasks: dict[str, Counter[str]] = {}
        self._shown: list[dict[str, Any]] = []

    def add(self, item: Rejected) -> None:
        """Counts one rejected document."""
        if item.stage == QUALITY:
            also = json.loads(item.evidence).get("also", [])
            self._failed.update([item.reason, *also])
            if not also:
                self._alone[item.reason] += 1
        elif item.stage == DECONTAMINATION:
            evidence = json.loads(item.evidence)
            for benchmark, tasks in evidence["tasks"].items():
                self._overlapping[benchmark] += 1
                self._tasks.setdefault(benchmark, Counter()).update(tasks)
            where = {"id": item.document.id, "repo": item.document.repo, "path": item.document.path}
            self._shown.append({**where, "spans": evidence["spans"], "count": evidence["count"]})
            if len(self._shown) >= 2 * MAX_SHOWN:
                self._cut()

    def state(self) -> dict[str, Any]:
        """All that was counted, as JSON."""
        self._cut()
        counters = {"failed": self._failed, "alone": self._alone, "overlapping": self._overlapping}
        return {**counters, "tasks": self._tasks, "shown": self._shown}

    def merge(self, state: dict[str, Any]) -> None:
        """Adds what another counted."""
        self._failed.update(state["failed"])
        self._alone.update(state["alone"])
        self._overlapping.update(state["overlapping"])
        for benchmark, tasks in state["tasks"].items():
            self._tasks.setdefault(benchmark, Counter()).update(tasks)
        self._shown += state["shown"]
        self._cut()

    def rules(self) -> dict[str, dict[str, int]]:
        """{rule: {"failed": documents that fail it, "alone": those that fail no other}} of the quality rules."""
        return {rule: {"failed": self._failed[rule], "alone": self._alone[rule]} for rule in sorted(self._failed)}

    def matches(self) -> dict[str, Any]:
        """{"benchmarks": {name: {"documents", "tasks": {task: documents}}}, "documents": the first, with spans}."""
        self._cut()
        benchmarks = {
            name: {"documents": count, "tasks": dict(sorted(self._tasks[name].items()))}
            for name, count in sorted(self._overlapping.items())
        }
        return {"benchmarks": benchmarks, "documents": self._shown}

    def _cut(self) -> None:
        self._shown = sorted(self._shown, key=lambda entry: entry["id"])[:MAX_SHOWN]
