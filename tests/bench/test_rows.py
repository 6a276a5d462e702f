"""Rows: the verdict follows from the figures by the stated rules, and files survive a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mify.bench.rows import (
    PERCENT_OF_LIMIT,
    STATUSES,
    Row,
    Target,
    compare,
    failed,
    judge,
    ratio_of,
    read_results,
    rows_against_rivals,
    write_results,
)
from mify.errors import MifyError

MACHINE = {"device": {"cpu": "x"}, "versions": {"python": "3"}, "commit": "abc"}
REPRO = "mify bench curation --case a"


def _row(value: float, unit: str = "MB/s", **more: object) -> Row:
    return Row.measured("curation", "a", "mify", "speed", value, unit, repro=REPRO, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "of", "at_least", "bound"),
    [
        ("ratio >= 1.1", "ratio", True, 1.1),
        ("value <= 5.5", "value", False, 5.5),
        ("value >= 24000", "value", True, 24000),
    ],
)
def test_target_is_read_and_written(text: str, of: str, at_least: bool, bound: float) -> None:
    target = Target.parse(text)
    assert (target.of, target.at_least, target.bound, str(target)) == (of, at_least, bound, text)


@pytest.mark.parametrize("text", ["", "1.1", "ratio > 1", "speed >= 2", "ratio >= fast", "ratio >= 1.1 x"])
def test_unreadable_target_is_refused(text: str) -> None:
    with pytest.raises(MifyError, match="target"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("value", "rival", "unit", "ratio"),
    [
        (10.0, 5.0, "MB/s", 2.0),
        (10.0, 5.0, "us", 0.5),
        (5.0, 10.0, "ms", 2.0),
        (5.0, None, "ms", None),
        (5.0, 0.0, "s", None),
    ],
)
def test_ratio_above_one_is_always_better(value: float, rival: float | None, unit: str, ratio: float | None) -> None:
    assert ratio_of(value, rival, unit) == ratio


def test_status_rules() -> None:
    ratio, value = Target.parse("ratio >= 1.1"), Target.parse("value <= 5.5")
    assert _row(11, rival="r", rival_value=10.0, target=ratio).status == "pass"
    assert _row(10.9, rival="r", rival_value=10.0, target=ratio).status == "fail"
    assert _row(11, target=ratio).status == "not comparable"
    assert _row(11).status == "not comparable"
    assert _row(5.5, "us", target=value).status == "pass"
    assert _row(5.6, "us", target=value).status == "fail"
    missing = Row.not_measured("decode", "a", "mify", "time", "us", why="no GPU", repro=REPRO, target=value)
    assert (missing.status, missing.value, missing.target, missing.note) == (
        "not measured",
        None,
        "value <= 5.5",
        "no GPU",
    )
    # A prediction is never a pass, however good.
    assert Row.predicted("decode", "a", "mify", "time", 0.1, "us", repro=REPRO, target=value).status == "predicted"
    assert {"pass", "fail", "not measured", "not comparable", "predicted"} == set(STATUSES)


def test_above_the_limit_fails_even_where_the_target_is_met() -> None:
    target = Target.parse("value >= 85")
    assert _row(99.9, PERCENT_OF_LIMIT, target=target).status == "pass"
    assert _row(143.9, PERCENT_OF_LIMIT, target=target).status == "fail"
    assert _row(143.9, PERCENT_OF_LIMIT).status == "fail"
    # 6.91 TB/s on a 4.8 TB/s part, and a time below what the memory allows.
    assert judge(6.91, "TB/s", None, Target.parse("value >= 3"), limit=4.8)[0] == "fail"
    assert judge(0.5, "us", None, Target.parse("value <= 5.5"), limit=0.9)[0] == "fail"
    assert judge(1.5, "us", None, Target.parse("value <= 5.5"), limit=0.9)[0] == "pass"
    assert judge(float("nan"), "us", None, None)[0] == "fail"


def test_the_best_rival_is_the_one_compared_with() -> None:
    target = Target.parse("ratio >= 1.5")
    rows = rows_against_rivals(
        "curation", "a", "speed", "MB/s", values={"slow": 10.0, "mify": 60.0, "fast": 30.0}, repro=REPRO, target=target
    )
    assert [(row.impl, row.rival, row.ratio, row.status) for row in rows] == [
        ("mify", "fast", 2.0, "pass"),
        ("slow", None, None, "not comparable"),
        ("fast", None, None, "not comparable"),
    ]
    times = rows_against_rivals("curation", "a", "time", "ms", values={"mify": 2.0, "a": 3.0, "b": 9.0}, repro=REPRO)
    assert (times[0].rival, times[0].ratio) == ("a", 1.5)
    with pytest.raises(KeyError, match="mify"):
        rows_against_rivals("curation", "a", "time", "ms", values={"a": 3.0}, repro=REPRO)


def test_failed_takes_only_the_failures() -> None:
    bad = _row(1, target=Target.parse("value >= 2"))
    assert failed([_row(3), bad, _row(3, target=Target.parse("value >= 2"))]) == [bad]


def test_results_survive_a_round_trip_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = [_row(3.25), Row.not_measured("curation", "b", "mify", "speed", "MB/s", why="absent", repro=REPRO)]
    write_results(path, rows, machine=MACHINE)
    machine, again = read_results(path)
    assert again == rows
    assert machine == MACHINE
    content = json.loads(path.read_text())
    assert set(content) == {"format", "version", "device", "versions", "commit", "rows"}
    assert set(content["rows"][0]) >= {
        "suite", "case", "impl", "metric", "value", "unit", "rival", "rival_value", "ratio", "target",
        "status", "repro",
    }  # fmt: skip
    for broken in (content | {"format": "other"}, content | {"version": 99}, content | {"rows": [{"suite": "x"}]}):
        path.write_text(json.dumps(broken))
        with pytest.raises(MifyError, match=r"r\.json"):
            read_results(path)
    path.write_text("{")
    with pytest.raises(MifyError, match=r"r\.json"):
        read_results(path)


def test_compare_matches_figures_and_leaves_out_what_was_not_measured() -> None:
    old = [_row(10.0), Row.measured("curation", "t", "mify", "time", 4.0, "ms", repro=REPRO)]
    new = [
        _row(20.0),
        Row.measured("curation", "t", "mify", "time", 8.0, "ms", repro=REPRO),
        Row.measured("curation", "new", "mify", "time", 8.0, "ms", repro=REPRO),
        Row.predicted("curation", "t", "mify", "time", 1.0, "ms", repro=REPRO),
    ]
    assert [(change.row.case, change.times_better) for change in compare(old, new)] == [("a", 2.0), ("t", 0.5)]
