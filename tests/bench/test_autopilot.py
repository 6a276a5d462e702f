"""The GPU autopilot with stand-in parts: order, limits, failures, going on, and what it writes."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from mify.bench import autopilot
from mify.bench.autopilot import Part, fly, identity, plan, table, unpack
from mify.bench.bench_kernels import CASES
from mify.bench.rows import Row, write_results
from mify.bench.suite import SUITES
from mify.bench.tune_decode import candidates

MACHINE = {"device": {"cpu": "x"}, "versions": {}, "commit": "abc"}


def _python(
    name: str, code: str, limit: float = 20.0, least: float = 0.0, if_missed: tuple[str, ...] = (), *words: str
) -> Part:
    return Part(name, (sys.executable, "-c", code, "{json}", *words), limit, least, if_missed)


def _writes(tmp_path: Path, name: str, *rows: Row, code: int = 0) -> Part:
    source = tmp_path / f"{name}-source.json"
    write_results(source, rows, machine=MACHINE)
    return _python(name, f"import shutil, sys; shutil.copy({str(source)!r}, sys.argv[1]); sys.exit({code})")


def _good() -> Row:
    return Row.measured("kernels", "a", "mify", "time", 2.0, "us", repro="mify bench kernels --case a")


def _bad() -> Row:
    return Row.failed("kernels", "b", "mify", "time", "us", why="wrong result", repro="mify bench kernels --case b")


def test_parts_run_in_order_and_a_failing_one_costs_only_itself(tmp_path: Path) -> None:
    parts = [
        _python("correctness", "print('all pass')"),
        _python("broken", "raise SystemExit('no such kernel')"),
        _writes(tmp_path, "missing", _good(), _bad(), code=1),
        _writes(tmp_path, "last", _good()),
    ]
    out, work = tmp_path / "out", tmp_path / "work"
    summary = fly(out, work, parts, budget=100)
    statuses = {name: outcome["status"] for name, outcome in summary["parts"].items()}
    assert statuses == {"correctness": "done", "broken": "failed", "missing": "missed", "last": "done"}
    assert "no such kernel" in summary["parts"]["broken"]["detail"]
    assert summary["correct"]
    assert summary["rows"] == {"not comparable": 2, "fail": 1}
    assert [row["case"] for row in summary["failed"]] == ["b"]
    assert summary["machine"] == MACHINE
    assert json.loads((out / "summary.json").read_text()) == summary
    with tarfile.open(out / "results.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"summary.json", "state.json", "missing.json", "broken.log", "last.json"} <= names
    assert sorted(path.name for path in out.iterdir()) == ["results.tar.gz", "summary.json"]
    text = table(summary)
    assert "missed b time" in text
    assert "call it again" in text  # the broken part has a try left


def test_it_goes_on_where_it_stopped_also_on_another_machine(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    count = f"open({str(runs)!r}, 'a').write('x')"
    parts = [_python("correctness", count), _python("slow", count, least=50.0)]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "code").write_text("now")
    first = fly(tmp_path / "a", tmp_path / "work", parts, budget=60)
    assert {name: part["status"] for name, part in first["parts"].items()} == {
        "correctness": "done",
        "slow": "not begun",
    }
    assert not first["complete"]
    unpack(tmp_path / "a" / "results.tar.gz", tmp_path / "other", "later")
    assert list((tmp_path / "other").iterdir()) == []  # what older code did is not done
    unpack(tmp_path / "a" / "results.tar.gz", tmp_path / "fresh", "now")
    second = fly(tmp_path / "b", tmp_path / "fresh", parts, budget=100)
    assert second["complete"]
    assert runs.read_text() == "xx"
    third = fly(tmp_path / "c", tmp_path / "fresh", parts, budget=100)
    assert third["complete"]
    assert runs.read_text() == "xx"


def test_a_part_that_hangs_is_ended_with_its_children_and_tried_twice(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    parts = [_python("hangs", code, limit=3.0)]
    begun = time.monotonic()
    summary = fly(tmp_path / "out", tmp_path / "work", parts, budget=100)
    assert time.monotonic() - begun < 30
    assert summary["parts"]["hangs"]["status"] == "out of time"
    assert not summary["correct"]
    assert "No figure above may be quoted" in table(summary)
    deadline = time.monotonic() + 10
    while _alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(pid.read_text()))
    assert not summary["complete"]
    assert fly(tmp_path / "out", tmp_path / "work", parts, budget=100)["complete"]


def test_what_missed_is_tuned_by_name_and_only_that(tmp_path: Path) -> None:
    told = tmp_path / "told"
    tell = f"import sys; open({str(told)!r}, 'a').write(' '.join(sys.argv[2:]) + '|')"
    parts = [
        _writes(tmp_path, "measure", _good(), _bad(), _bad(), code=1),
        _python("tune", tell, 20, 0, ("b", "c"), "{missed}", "in", "{work}"),
        _python("tune-others", tell, 20, 0, ("a", "x*"), "{missed}"),
    ]
    summary = fly(tmp_path / "out", tmp_path / "work", parts, budget=100)
    assert [part["status"] for part in summary["parts"].values()] == ["missed", "done", "not needed"]
    assert told.read_text() == f"b in {tmp_path / 'work'}|"
    assert summary["complete"]


def test_nothing_is_called_needless_before_it_was_measured(tmp_path: Path) -> None:
    parts = [_python("measure", "pass", least=50.0), _python("tune", "pass", 20, 0, ("b",))]
    summary = fly(tmp_path / "out", tmp_path / "work", parts, budget=30)
    assert {part["status"] for part in summary["parts"].values()} == {"not begun"}
    assert not summary["complete"]


def test_a_part_that_is_stopped_keeps_the_rows_it_had_and_the_longer_try_counts(tmp_path: Path) -> None:
    source, runs = tmp_path / "rows.json", tmp_path / "runs"
    write_results(source, [_good(), _bad()], machine=MACHINE)
    code = (
        "import os, pathlib, shutil, sys, time;"
        f"runs = pathlib.Path({str(runs)!r}); first = not runs.exists(); runs.touch();"
        f"shutil.copy({str(source)!r}, sys.argv[1]) if first else open(sys.argv[1], 'w').write('{{');"
        "time.sleep(60)"
    )
    parts = [_python("correctness", "pass"), _python("stopped", code, limit=3.0)]
    summary = fly(tmp_path / "out", tmp_path / "work", parts, budget=100)
    assert summary["parts"]["stopped"]["status"] == "out of time"
    assert "with 2 rows" in summary["parts"]["stopped"]["detail"]
    assert summary["rows"] == {"not comparable": 1, "fail": 1}
    again = fly(tmp_path / "out", tmp_path / "work", parts, budget=100)
    assert again["parts"]["stopped"]["tries"] == 2
    assert again["rows"] == {"not comparable": 1, "fail": 1}


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_state_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "state.json").write_text("{")
    assert fly(tmp_path / "out", work, [_python("correctness", "pass")], budget=60)["complete"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        (tmp_path / "x").write_text("x")
        packed.add(tmp_path / "x", arcname="../escaped")
        packed.add(tmp_path / "x", arcname="kept.json")
        packed.add(tmp_path / "x", arcname="code")
    unpack(archive, tmp_path / "work", "x")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["code", "kept.json"]
    assert not (tmp_path / "escaped").exists()


def test_other_code_is_another_identity(monkeypatch: pytest.MonkeyPatch, checkout: Path, tmp_path: Path) -> None:
    before = identity()
    assert identity() == before
    monkeypatch.setenv("MIFY_GPU_DRY_RUN", "" if os.environ.get("MIFY_GPU_DRY_RUN") else "1")
    assert identity() != before
    for folder in ("bench", "kernels"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(autopilot, "__file__", str(tmp_path / "bench" / "autopilot.py"))
    seen = {identity()}
    for name, text in (("a.py", "1"), ("a.py", "2"), ("a.cu", "2"), ("b.cu", "2")):
        (tmp_path / "kernels" / name).write_text(text)
        seen.add(identity())
    assert len(seen) == 5
    (tmp_path / "kernels" / "measured.json").write_text("{}")  # tuning writes it, and goes on
    assert identity() in seen


def test_the_real_plan_begins_with_correctness_and_names_suites_that_exist() -> None:
    parts = plan()
    assert parts[0].name == "correctness"
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        if "bench" in part.command:
            assert part.command[part.command.index("bench") + 1] in SUITES
            assert "{json}" in part.command
    assert {"tune", "again"} <= {part.name for part in parts}
    quick = {part.name: part.command for part in plan(dry_run=True)}
    assert set(quick) == {part.name for part in parts}
    assert "--quick" in quick["norm"]


def test_every_case_of_the_kernels_suite_is_in_one_part() -> None:
    patterns = [
        part.command[i + 1]
        for part in plan()
        if "kernels" in part.command
        for i, word in enumerate(part.command)
        if word == "--case"
    ]
    for case in CASES:
        assert sum(fnmatch.fnmatchcase(case, pattern) for pattern in patterns) == (not case.startswith("cpu-")), case


@pytest.mark.parametrize(("batch", "keys"), [(1, 64), (1, 65_536), (64, 4096)])
def test_split_candidates_are_possible_and_hold_the_chosen_one(batch: int, keys: int) -> None:
    found = candidates(batch, 8, keys, 132)
    assert found == sorted(set(found))
    assert found[0] == 1
    assert found[-1] <= min(128, -(-keys // 64))


def test_the_script_says_how_it_is_used(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "bench" / "gpu.sh"
    assert os.access(script, os.X_OK)
    done: Any = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "usage: bench/gpu.sh OUT" in done.stderr


def test_a_dry_run_goes_through_the_script_without_a_gpu(checkout: Path, tmp_path: Path) -> None:
    """With no time for a part: what the script does before and after them. The parts' own way is tested above."""
    environment = os.environ | {
        "PYTHON": sys.executable, "MIFY_GPU_WORK": str(tmp_path / "work"), "MIFY_GPU_DRY_RUN": "1",
        "MIFY_GPU_BUDGET": "1",
    }  # fmt: skip
    script = str(checkout / "bench" / "gpu.sh")
    for arguments in (["out"], ["again", "out/results.tar.gz"]):
        done = subprocess.run(
            ["bash", script, *arguments], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "DRY RUN" in done.stdout
        assert "call it again to go on" in done.stdout
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["dry_run"]
    assert not summary["correct"]
    assert {part["status"] for part in summary["parts"].values()} == {"not begun"}
    assert (tmp_path / "again" / "results.tar.gz").is_file()


def test_without_a_gpu_the_script_runs_nothing(checkout: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = os.environ | {"PYTHON": sys.executable, "MIFY_GPU_WORK": str(tmp_path / "work")}
    command = ["bash", str(checkout / "bench" / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "nothing was run" in done.stderr
    assert not (tmp_path / "work").exists()
