"""Suites: how targets are found, how a suite is found and run, and what the command does with its rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mify.bench import suite
from mify.bench.rows import Row, read_results
from mify.bench.suite import Options, Targets, load_suite, machine, run_suite, target_column
from mify.cli.app import app
from mify.errors import MifyError
from mify.hardware import Gpu

RUN = CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"})
TABLE = """
[curation."minhash-128".speed]
cpu = "ratio >= 20"
source = "the fastest found"
[decode."b1-*".time]
h100 = "value <= 5.5"
h200 = "value <= 5.0"
source = "6.9 µs published"
[decode."b1-long".time]
h200 = "value <= 9"
source = "the same"
"""


def _targets(tmp_path: Path, column: str, text: str = TABLE) -> Targets:
    path = tmp_path / "targets.toml"
    path.write_text(text, encoding="utf-8")
    return Targets.load(column, path)


def test_targets_are_found_by_device_case_and_metric(tmp_path: Path) -> None:
    cpu, h200 = _targets(tmp_path, "cpu"), _targets(tmp_path, "h200")
    assert str(cpu.find("curation", "minhash-128", "speed")) == "ratio >= 20"
    assert cpu.find("curation", "minhash-256", "speed") is None
    assert cpu.find("decode", "b1-1k", "time") is None
    assert str(h200.find("decode", "b1-1k", "time")) == "value <= 5"
    assert str(h200.find("decode", "b1-long", "time")) == "value <= 9"
    assert _targets(tmp_path, "h100").find("decode", "b1-long", "time") is None
    # A GPU that no target is defined for: nothing to compare with.
    assert _targets(tmp_path, "nvidia l40s").find("decode", "b1-1k", "time") is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[x", "TOML"),
        ('[baking."a".speed]\ncpu = "ratio >= 1"\nsource = "s"', "baking"),
        ('[data."a".speed]\ncpu = "ratio >= 1"', "no source"),
        ('[data."a".speed]\ntpu = "ratio >= 1"\nsource = "s"', "tpu"),
        ('[data."a".speed]\ncpu = "fast"\nsource = "s"', "fast"),
    ],
)
def test_broken_targets_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(MifyError, match=named):
        _targets(tmp_path, "cpu", text)


@pytest.mark.parametrize("column", ["cpu", "h100", "h200"])
def test_the_shipped_targets_can_be_read(column: str) -> None:
    assert Targets.load(column).column == column


def test_the_column_follows_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_gpu(name: str) -> None:
        monkeypatch.setattr("mify.hardware.gpus", lambda: (Gpu(0, name, 1, "1", "9.0", 1, 1, 1.0),))

    with_gpu("NVIDIA H100 80GB HBM3")
    assert (target_column("kernels"), target_column("curation")) == ("h100", "cpu")
    with_gpu("NVIDIA L40S")
    assert target_column("kernels") == "nvidia l40s"
    monkeypatch.setattr("mify.hardware.gpus", lambda: ())
    assert target_column("kernels") == "cpu"


def test_repro_is_the_command_that_selects_the_case() -> None:
    options = Options(suite="data", quick=True, rounds=3, cases=("pack-*",), threads=2, seed=7, data=Path("/x"))
    assert options.repro("pack-8k") == (
        "mify bench data --case 'pack-8k' --rounds 3 --quick --threads 2 --seed 7 --data /x"
    )
    assert options.selected("pack-8k")
    assert not options.selected("fim")
    assert Options(suite="data").selected("anything")


def test_unknown_suites_and_cases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MifyError, match="'cooking'"):
        load_suite("cooking")
    monkeypatch.setattr(suite, "load_suite", lambda _: SimpleNamespace(CASES={"a": "x"}, run=lambda _: []))
    assert run_suite("data", Options(suite="data", cases=("a",))) == []
    with pytest.raises(MifyError, match="pack"):
        run_suite("data", Options(suite="data", cases=("pack*",)))


def test_the_machine_is_recorded() -> None:
    found = machine()
    assert set(found) == {"device", "versions", "commit"}
    assert found["device"]["cores"] >= 1
    assert found["versions"]["python"].startswith("3.")


class _Suite:
    CASES = {"a": "the first letter", "b": "the second"}  # noqa: RUF012

    @staticmethod
    def run(options: Options) -> list[Row]:
        target = options.targets.find("curation", "a", "speed")
        rows = []
        for case in _Suite.CASES:
            if options.selected(case):
                value = 10.0 if case == "a" else 30.0
                repro = options.repro(case)
                rows.append(
                    Row.measured("curation", case, "mify", "speed", value, "MB/s", rival="r", rival_value=15.0,
                                 target=target, repro=repro)
                )  # fmt: skip
        return rows


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = '[curation."a".speed]\ncpu = "ratio >= 1.5"\nsource = "s"'
    monkeypatch.setattr(suite, "load_suite", lambda _: _Suite)
    monkeypatch.setattr(suite, "available", lambda: ("curation",))
    targets = _targets(tmp_path, "cpu", text)
    monkeypatch.setattr(Targets, "load", classmethod(lambda cls, column, path=None: targets))


@pytest.mark.usefixtures("stand_in")
def test_the_command_prints_saves_compares_and_fails(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    result = RUN.invoke(app, ["bench", "curation", "--json", str(out)])
    assert result.exit_code == 1
    assert "0.67×" in result.output
    assert "missed a: speed of mify; again: mify bench curation --case 'a' --rounds 5" in result.output
    found, rows = read_results(out)
    assert [row.status for row in rows] == ["fail", "pass"]
    assert found["versions"]["python"]
    assert json.loads(out.read_text())["rows"][1]["ratio"] == 2.0

    again = RUN.invoke(app, ["bench", "curation", "--case", "a", "--compare", str(out)])
    assert again.exit_code == 1
    assert "1.000×" in again.output

    listed = RUN.invoke(app, ["bench", "curation", "--list"])
    assert listed.exit_code == 0
    assert "the first letter" in listed.output
    every = RUN.invoke(app, ["bench", "all", "--case", "b"])
    assert "mify bench curation" in every.output


@pytest.mark.parametrize(
    "arguments", [["cooking"], ["curation", "--compare", "/nowhere.json"], ["curation", "--data", "/nowhere"]]
)
def test_a_mistake_is_exit_code_2(arguments: list[str], stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "cooking":
        monkeypatch.undo()  # the real suites
    result = RUN.invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert "mify: " in result.output
