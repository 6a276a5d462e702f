"""Stages with stamps: run once, continue, notice what changed, never continue another key's work."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mify.cli.demo.pipeline import Stage, content_hash, run_stages


class Recorder:
    """Two stages that note each run; the second reads what the first made."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.die_in: str | None = None

    def stages(self, number: int = 1) -> list[Stage]:
        def make(name: str, work: Callable[[Path], None]) -> Callable[..., dict[str, Any]]:
            def run(folder: Path, report: Any) -> dict[str, Any]:
                self.runs.append(name)
                report("working", 1, 2)
                work(folder)
                if self.die_in == name:
                    raise KeyboardInterrupt
                return {"line": f"{name} done", "value": number}

            return run

        def first(folder: Path) -> None:
            (folder / "a").mkdir(exist_ok=True)
            (folder / "a" / "x.txt").write_text(f"x{number}")

        def second(folder: Path) -> None:
            old = (folder / "b.txt").read_text() if (folder / "b.txt").exists() else ""
            (folder / "b.txt").write_text(old + (folder / "a" / "x.txt").read_text())

        return [
            Stage("first", "First", {"number": number}, (), ("a",), make("first", first)),
            Stage("second", "Second", {}, ("first",), ("b.txt",), make("second", second)),
        ]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_a_finished_stage_does_not_run_again(tmp_path: Path, console: Console) -> None:
    recorder = Recorder()
    before = run_stages(recorder.stages(), tmp_path, console)
    after = run_stages(recorder.stages(), tmp_path, console)
    assert recorder.runs == ["first", "second"]
    assert before == after
    assert before["first"].summary["value"] == 1
    assert "done before" in said(console)


def test_an_interrupted_stage_continues_its_own_work(tmp_path: Path, console: Console) -> None:
    recorder = Recorder()
    recorder.die_in = "second"
    with pytest.raises(KeyboardInterrupt):
        run_stages(recorder.stages(), tmp_path, console)
    recorder.die_in = None
    run_stages(recorder.stages(), tmp_path, console)
    assert recorder.runs == ["first", "second", "second"]
    assert (tmp_path / "b.txt").read_text() == "x1x1"  # what the interrupted run wrote was there to continue from


def test_changed_settings_rerun_the_stage_and_what_reads_it(tmp_path: Path, console: Console) -> None:
    recorder = Recorder()
    run_stages(recorder.stages(1), tmp_path, console)
    run_stages(recorder.stages(2), tmp_path, console)
    assert recorder.runs == ["first", "second"] * 2
    assert (tmp_path / "b.txt").read_text() == "x2"  # another key's output was removed, not continued
    assert "settings or inputs changed" in said(console)


def test_equal_outputs_of_changed_settings_keep_what_reads_them(tmp_path: Path, console: Console) -> None:
    recorder = Recorder()
    stages = recorder.stages()
    run_stages(stages, tmp_path, console)
    again = [Stage("first", "First", {"number": 1, "new": True}, (), ("a",), stages[0].run), stages[1]]
    run_stages(again, tmp_path, console)
    assert recorder.runs == ["first", "second", "first"]


@pytest.mark.parametrize("damage", ["edit", "remove"])
def test_a_changed_output_is_made_again_and_said(tmp_path: Path, console: Console, damage: str) -> None:
    recorder = Recorder()
    run_stages(recorder.stages(), tmp_path, console)
    file = tmp_path / "a" / "x.txt"
    file.write_text("spoiled") if damage == "edit" else file.unlink()
    run_stages(recorder.stages(), tmp_path, console)
    assert recorder.runs == ["first", "second", "first"]
    assert file.read_text() == "x1"
    assert "was changed or removed" in said(console)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": "demo-stage", "version": 99})])
def test_a_damaged_or_foreign_stamp_is_not_trusted(tmp_path: Path, console: Console, text: str) -> None:
    recorder = Recorder()
    run_stages(recorder.stages(), tmp_path, console)
    (tmp_path / "stages" / "first.json").write_text(text)
    run_stages(recorder.stages(), tmp_path, console)
    assert recorder.runs == ["first", "second", "first"]
    assert "is damaged" in said(console)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, console: Console) -> None:
    (tmp_path / ".b.txt.a1b2c3d4.tmp").write_text("half")
    run_stages(Recorder().stages(), tmp_path, console)
    assert not list(tmp_path.glob(".*"))


def test_content_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("1")
    one = content_hash(folder)
    (folder / "a").rename(folder / "b")
    two = content_hash(folder)
    (folder / "b").write_text("2")
    assert len({one, two, content_hash(folder)}) == 3
    assert content_hash(tmp_path / "absent") == ""
