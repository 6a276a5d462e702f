"""Journals: continued after a kill, refused under other settings, equal bytes from equal runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.eval.records import Journal, read_records

SETTINGS = {"model": {"name": "m"}, "samples": 2}


def fill(path: Path, ids: list[str]) -> None:
    with Journal(path, "completions", SETTINGS, ("id", "sample")) as journal:
        for identity in ids:
            journal.add({"id": identity, "sample": 0, "completion": f"of {identity}\n"})
        journal.finish()


def test_the_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["x", "y", "z"])
    fill(tmp_path / "b", ["z", "x", "y"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [record["id"] for record in read_records(tmp_path / "a", "completions")] == ["x", "y", "z"]


@pytest.mark.parametrize("cut", [1, 20, 45])
def test_a_torn_last_line_is_dropped_and_the_rest_continued(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with Journal(path, "completions", SETTINGS, ("id", "sample")) as journal:
        journal.add({"id": "x", "sample": 0, "completion": "whole"})
        journal.add({"id": "y", "sample": 0, "completion": "torn"})
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, "completions", SETTINGS, ("id", "sample")) as journal:
        assert list(journal.records) == [("x", 0)]
        journal.add({"id": "y", "sample": 0, "completion": "torn"})
        journal.finish()
    fill(tmp_path / "other", [])
    assert [record["completion"] for record in read_records(path, "completions")] == ["whole", "torn"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["x"])
    with pytest.raises(MifyError, match="samples"):
        Journal(tmp_path / "a", "completions", {**SETTINGS, "samples": 3}, ("id", "sample"))
    with pytest.raises(MifyError, match="no verdicts journal"):
        Journal(tmp_path / "a", "verdicts", SETTINGS, ("id", "sample"))


@pytest.mark.parametrize("content", ["", "not json\n", "[]\n", '{"format": "completions"}\nbroken\n{"id": 1}\n'])
def test_damage_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal"
    path.write_text(content)
    with pytest.raises(MifyError, match="journal"):
        Journal(path, "completions", SETTINGS, ("id", "sample"))
    with pytest.raises(MifyError, match="journal"):
        read_records(path, "completions")


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps({"format": "completions", "version": 9, "settings": SETTINGS}) + "\n")
    with pytest.raises(MifyError, match="version 9"):
        Journal(path, "completions", SETTINGS, ("id", "sample"))
