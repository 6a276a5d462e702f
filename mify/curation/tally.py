"""Counts of documents by what the report tells of them, small however many documents there are.

A tally holds one entry per (side, source, repo, domain, language, license, stage, reason) that occurs: its documents,
the bytes of their texts as they were read (redaction comes later) and as they are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mify.curation.stages import STAGES


class Group(NamedTuple):
    """What documents are counted by; stage and reason are None for those that are kept."""

    held_out: bool
    source: str
    repo: str
    domain: str
    language: str
    license: str
    stage: str | None
    reason: str | None


class Sums(NamedTuple):
    """The sums of a group."""

    documents: int
    bytes_read: int
    bytes_written: int


Count = dict[str, int]


class Tally:
    """Sums by group; the order in which they come does not matter."""

    def __init__(self, rows: Iterable[tuple[Iterable[Any], Iterable[int]]] = ()) -> None:
        self._sums: dict[Group, list[int]] = {}
        for group, sums in rows:
            self.add(Group(*group), Sums(*sums))

    def add(self, group: Group, sums: Sums) -> None:
        """Counts some documents of a group."""
        mine = self._sums.setdefault(group, [0, 0, 0])
        for place, value in enumerate(sums):
            mine[place] += value

    def __bool__(self) -> bool:
        return bool(self._sums)

    def __iter__(self) -> Iterator[tuple[Group, Sums]]:
        for group, sums in self._sums.items():
            yield group, Sums(*sums)

    def kept(self, held_out: bool | None = None) -> Tally:
        """Of what is kept, on one side or on both."""
        return Tally(
            (group, sums) for group, sums in self if group.stage is None and held_out in (None, group.held_out)
        )

    def account(self) -> dict[str, Any]:
        """The funnel by stage and reason, and the same totals by split, source, repository, domain and language.

        All in documents and in bytes as read, so that at every line in = kept + rejected.
        """
        return {
            "totals": _totals(self),
            "stages": self._stages(),
            "splits": self._by(lambda group: "held-out" if group.held_out else "train"),
            "sources": self._by(lambda group: group.source),
            "repos": self._by(lambda group: group.repo),
            "domains": self._by(lambda group: group.domain),
            "languages": self._by(lambda group: group.language),
        }

    def composition(self) -> dict[str, Any]:
        """Documents and bytes as written, in all, by domain, language and license."""

        def by(name: str) -> dict[str, Count]:
            found: dict[str, Count] = {}
            for group, sums in self:
                _count(found.setdefault(getattr(group, name), _none()), sums.documents, sums.bytes_written)
            return dict(sorted(found.items()))

        whole = _none()
        for _, sums in self:
            _count(whole, sums.documents, sums.bytes_written)
        return {**whole, "domains": by("domain"), "languages": by("language"), "licenses": by("license")}

    def _stages(self) -> list[dict[str, Any]]:
        reasons: dict[str, dict[str, Count]] = {stage: {} for stage in STAGES}
        for group, sums in self:
            if group.stage is not None:
                counted = reasons[group.stage].setdefault(group.reason or "", _none())
                _count(counted, sums.documents, sums.bytes_read)
        rows, remaining = [], _totals(self)["in"]
        for stage in STAGES:
            rejected = _none()
            for counted in reasons[stage].values():
                _count(rejected, counted["documents"], counted["bytes"])
            after = {key: remaining[key] - rejected[key] for key in remaining}
            row = {"stage": stage, "in": remaining, "rejected": rejected, "kept": after}
            rows.append({**row, "reasons": dict(sorted(reasons[stage].items()))})
            remaining = after
        return rows

    def _by(self, key: Callable[[Group], str]) -> dict[str, Any]:
        groups: dict[str, Tally] = {}
        for group, sums in self:
            groups.setdefault(key(group), Tally()).add(group, sums)
        table = {}
        for name in sorted(groups):
            stages: Counter[str] = Counter()
            for group, sums in groups[name]:
                if group.stage is not None:
                    stages[group.stage] += sums.documents
            table[name] = _totals(groups[name]) | {"rejected_by_stage": dict(sorted(stages.items()))}
        return table


def _none() -> Count:
    return {"documents": 0, "bytes": 0}


def _count(into: Count, documents: int, num_bytes: int) -> None:
    into["documents"] += documents
    into["bytes"] += num_bytes


def _totals(tally: Tally) -> dict[str, Any]:
    sides: Mapping[bool, Count] = {True: _none(), False: _none()}
    for group, sums in tally:
        _count(sides[group.stage is None], sums.documents, sums.bytes_read)
    kept, rejected = sides[True], sides[False]
    return {"in": {key: kept[key] + rejected[key] for key in kept}, "kept": kept, "rejected": rejected}
