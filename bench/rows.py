"""Rows: one measured figure each, with its rival, its target, its verdict and the command that measures it again.

The verdict (`status`) follows from the figures alone:

=================  ===================================================================================================
pass               the target is met
fail               the target is missed, or the figure is above 100% of what the machine can do (so mismeasured)
not measured       nothing was run here; `note` says why
not comparable     measured, but no target is defined for this device, or the rival it is set against is not installed
predicted          computed from the roofline, never measured
=================  ===================================================================================================
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mify.errors import MifyError
from mify.files import read_json, write_json

FORMAT, VERSION = "mify.bench", 1

Status = Literal["pass", "fail", "not measured", "not comparable", "predicted"]
STATUSES: tuple[Status, ...] = ("pass", "fail", "not measured", "not comparable", "predicted")

# Units in which less is better. Everything else (tokens/s, MB/s, TFLOP/s, accuracy) is better when higher.
LESS_IS_BETTER = frozenset({"s", "ms", "us", "ns", "B", "KiB", "MiB", "GiB", "bits/byte", "registers", "spills"})
# The unit of a row that sets a figure against the most this machine can do: above 100 it fails whatever its target.
PERCENT_OF_LIMIT = "% of limit"
# 100% and what a clock's resolution may add to it.
_LIMIT_TOLERANCE = 100.0 + 1e-6


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must reach.

    Args:
        of: "value" (the figure itself) or "ratio" (how many times better than the rival; above 1 is better).
        at_least: True for >=, False for <=.
        bound: the figure to reach, in the row's unit (or a plain ratio).
        source: where the bound comes from.
    """

    of: Literal["value", "ratio"]
    at_least: bool
    bound: float
    source: str = ""

    @classmethod
    def parse(cls, text: str, source: str = "") -> Target:
        """Reads "ratio >= 1.1" or "value <= 5.5". Raises `MifyError` on anything else."""
        parts = text.split()
        if len(parts) != 3 or parts[0] not in ("value", "ratio") or parts[1] not in (">=", "<="):
            raise MifyError(f"the target {text!r} cannot be read", 'write it as "ratio >= 1.1" or "value <= 5.5"')
        try:
            bound = float(parts[2])
        except ValueError:
            raise MifyError(f"the target {text!r} has no number", 'write it as "ratio >= 1.1"') from None
        return cls("value" if parts[0] == "value" else "ratio", parts[1] == ">=", bound, source)

    def __str__(self) -> str:
        return f"{self.of} {'>=' if self.at_least else '<='} {self.bound:g}"

    def met(self, value: float, ratio: float | None) -> bool | None:
        """Whether the figure reaches the bound; None where a ratio is asked for and there is no rival."""
        figure = value if self.of == "value" else ratio
        if figure is None:
            return None
        return figure >= self.bound if self.at_least else figure <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is how many times better `impl` is than `rival`: above 1 is better, whatever the unit."""

    suite: str
    case: str
    impl: str
    metric: str
    value: float | None
    unit: str
    rival: str | None
    rival_value: float | None
    ratio: float | None
    target: str | None
    status: Status
    repro: str
    note: str = ""

    @classmethod
    def measured(
        cls,
        suite: str,
        case: str,
        impl: str,
        metric: str,
        value: float,
        unit: str,
        *,
        repro: str,
        rival: str | None = None,
        rival_value: float | None = None,
        target: Target | None = None,
        limit: float | None = None,
        note: str = "",
    ) -> Row:
        """A figure that was measured in this run.

        Args:
            value, rival_value: in `unit`; the ratio follows from the unit (`LESS_IS_BETTER`).
            limit: the best that the machine could reach, in `unit`; a figure better than that fails.
        """
        better = ratio_of(value, rival_value, unit)
        status, why = judge(value, unit, better, target, limit)
        note = "; ".join(part for part in (note, why) if part)
        return cls(
            suite, case, impl, metric, value, unit, rival, rival_value, better, _text(target), status, repro, note
        )

    @classmethod
    def not_measured(
        cls,
        suite: str,
        case: str,
        impl: str,
        metric: str,
        unit: str,
        *,
        why: str,
        repro: str,
        target: Target | None = None,
    ) -> Row:
        """A figure that this machine or this run could not give; `why` is said in the note."""
        return cls(suite, case, impl, metric, None, unit, None, None, None, _text(target), "not measured", repro, why)

    @classmethod
    def failed(cls, suite: str, case: str, impl: str, metric: str, unit: str, *, why: str, repro: str) -> Row:
        """A figure that should have been measured and could not be: ours is wrong or does not run."""
        return cls(suite, case, impl, metric, None, unit, None, None, None, None, "fail", repro, why)

    @classmethod
    def predicted(
        cls,
        suite: str,
        case: str,
        impl: str,
        metric: str,
        value: float,
        unit: str,
        *,
        repro: str,
        target: Target | None = None,
        note: str = "",
    ) -> Row:
        """A figure computed from a cost model. It is never set against a target."""
        return cls(suite, case, impl, metric, value, unit, None, None, None, _text(target), "predicted", repro, note)


def _text(target: Target | None) -> str | None:
    return None if target is None else str(target)


def ratio_of(value: float, rival_value: float | None, unit: str) -> float | None:
    """How many times better `value` is than `rival_value`; None without a rival or where a division has no meaning."""
    if rival_value is None or value <= 0 or rival_value <= 0:
        return None
    return rival_value / value if unit in LESS_IS_BETTER else value / rival_value


def judge(
    value: float, unit: str, ratio: float | None, target: Target | None, limit: float | None = None
) -> tuple[Status, str]:
    """The status of a measured figure and, where it is not plain, the reason, by the rules at the top of this file."""
    if not math.isfinite(value):
        return "fail", "the figure is not finite"
    if unit == PERCENT_OF_LIMIT and value > _LIMIT_TOLERANCE:
        return "fail", "above 100% of the limit: mismeasured"
    if limit is not None and (value < limit if unit in LESS_IS_BETTER else value > limit):
        return "fail", f"better than the machine's limit of {limit:g} {unit}: mismeasured"
    if target is None:
        return "not comparable", "no target is defined for this device"
    met = target.met(value, ratio)
    if met is None:
        return "not comparable", "the rival is not here"
    return ("pass" if met else "fail"), ""


def rows_against_rivals(
    suite: str,
    case: str,
    metric: str,
    unit: str,
    *,
    values: Mapping[str, float],
    repro: str,
    ours: str = "mify",
    target: Target | None = None,
    limit: float | None = None,
    note: str = "",
) -> list[Row]:
    """One row for `ours`, set against the best of the others, then one informative row for each rival.

    Args:
        values: implementation → figure in `unit`; `ours` must be among them.
    """
    if ours not in values:
        raise KeyError(f"{ours!r} is not among the measured implementations {sorted(values)}")
    others = {name: value for name, value in values.items() if name != ours}
    pick = min if unit in LESS_IS_BETTER else max
    best = pick(others, key=lambda name: others[name]) if others else None
    rows = [
        Row.measured(
            suite, case, ours, metric, values[ours], unit, repro=repro, rival=best,
            rival_value=others[best] if best else None, target=target, limit=limit, note=note,
        )
    ]  # fmt: skip
    for name, value in others.items():
        row = Row.measured(suite, case, name, metric, value, unit, repro=repro, limit=limit)
        rows.append(row if row.status == "fail" else _informative(row))
    return rows


def _informative(row: Row) -> Row:
    values = asdict(row) | {"note": "the rival's own figure"}
    return Row(**values)


def failed(rows: Iterable[Row]) -> list[Row]:
    """The rows that missed their target or were mismeasured: what makes `mify bench` end with exit code 1."""
    return [row for row in rows if row.status == "fail"]


def write_results(
    path: str | os.PathLike[str], rows: Iterable[Row], *, machine: Mapping[str, Any] | None = None
) -> None:
    """Writes rows beside the device, the versions and the commit that they were measured on, atomically.

    Args:
        machine: {"device", "versions", "commit"}; `mify.bench.suite.machine()` where not given.
    """
    if machine is None:
        from mify.bench.suite import machine as this_machine

        machine = this_machine()
    write_json(path, {"format": FORMAT, "version": VERSION, **machine, "rows": [asdict(row) for row in rows]})


def read_results(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Row]]:
    """Reads what `write_results` wrote: (the machine, the rows). An unknown format, a broken row raise `MifyError`."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MifyError(
            f"{path} is not a result of `mify bench`", "pass a file written by `mify bench SUITE --json FILE`"
        )
    if content.get("version") != VERSION:
        raise MifyError(
            f"{path} has version {content.get('version')!r} of {FORMAT}; this mify reads version {VERSION}",
            "measure again with `mify bench SUITE --json FILE`",
        )
    names = {field.name for field in fields(Row)}
    rows = []
    for number, entry in enumerate(content.get("rows", [])):
        if not isinstance(entry, dict) or not names - {"note"} <= set(entry) or entry["status"] not in STATUSES:
            raise MifyError(f"{path}: row {number} is not a bench row: {json.dumps(entry)[:120]}", "measure again")
        rows.append(Row(**{name: entry[name] for name in names if name in entry}))
    return {key: content.get(key) for key in ("device", "versions", "commit")}, rows


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in two result files. `times_better` above 1: the new one is better."""

    row: Row
    old_value: float
    times_better: float


def compare(old: Iterable[Row], new: Iterable[Row]) -> list[Change]:
    """The figures measured in both, in the order of `new`, matched by suite, case, implementation, metric and unit."""

    def key(row: Row) -> tuple[str, ...]:
        return row.suite, row.case, row.impl, row.metric, row.unit

    before = {key(row): row.value for row in old if row.status not in ("not measured", "predicted")}
    changes = []
    for row in new:
        value = before.get(key(row))
        if value is None or row.value is None or row.status == "predicted":
            continue
        better = ratio_of(row.value, value, row.unit)
        if better is not None:
            changes.append(Change(row, value, better))
    return changes


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a result file."""
    return read_results(path)[1]
