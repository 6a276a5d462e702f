"""The tuner with stand-in kernels: candidates are held by the table, checked before they are timed, written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mify.bench import tune_kernels
from mify.bench.rows import read_rows
from mify.bench.tune_kernels import Knob, results, tune, write
from mify.kernels import measured

RIGHT = torch.randn(8)


def knob(answers: Mapping[str, Any]) -> Knob:
    """A kernel that asks the table which candidate it is, as `launch.chosen` does."""

    def call() -> Any:
        names = measured.fastest_first(
            measured.load(), "toy", "gpu", "bfloat16", {"size": 8}, measured.Like(equal=("size",))
        )
        answer = answers[names[0]]
        return answer() if callable(answer) else answer

    return Knob("toy", {"size": 8}, tuple(answers), ("norm", "norm-*"), lambda: call)


def clock(times: Mapping[str, float]) -> Callable[[Mapping[str, Any]], Mapping[str, float]]:
    def run(calls: Mapping[str, Any]) -> Mapping[str, float]:
        for call in calls.values():
            call()
        return {name: times[name] for name in calls}

    return run


def fails() -> Any:
    raise RuntimeError("out of resource: shared memory")


def test_the_best_right_candidate_wins_and_the_table_can_take_it(tmp_path: Path) -> None:
    toy = knob({"a": RIGHT, "b": RIGHT.clone(), "wrong": RIGHT * 1.5, "fails": fails})
    before = measured.load
    seconds, left_out = tune(toy, "gpu", "bfloat16", clock({"a": 3e-6, "b": 2e-6}))
    assert measured.load is before
    assert seconds == {"a": 3e-6, "b": 2e-6}
    assert "another result" in left_out["wrong"]
    assert "shared memory" in left_out["fails"]
    row, entry = results(toy, seconds, left_out, "gpu", "bfloat16", "here")
    assert (row.impl, row.rival, row.ratio) == ("b", "a, the first", 1.5)
    assert "fails: RuntimeError" in row.note
    assert entry is not None
    out = tmp_path / "out.json"
    write(out, [row], [entry], {"device": {}, "versions": {}, "commit": "abc"})
    assert [r.case for r in read_rows(out)] == ["tune toy"]
    (taken,) = measured.parse(out.read_text(), "out.json")
    assert measured.fastest_first([taken], "toy", "gpu", "bfloat16", {"size": 8}, measured.Like(equal=("size",))) == (
        "b",
        "a",
    )
    assert json.loads(out.read_text())["format"] == "mify.bench"


def test_a_kernel_that_cannot_run_is_a_failed_row() -> None:
    toy = knob({"a": fails})
    row, entry = results(toy, *tune(toy, "gpu", "bfloat16", clock({})), "gpu", "bfloat16", "here")
    assert (row.status, entry) == ("fail", None)


def test_only_the_kernels_of_the_named_cases_are_tuned() -> None:
    assert knob({"a": RIGHT}).runs_in(["norm-residual"])
    assert not knob({"a": RIGHT}).runs_in(["rope", "swiglu"])


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert tune_kernels.main([]) == 2
    assert tune_kernels.main(["out.json"]) == 2
    assert "no GPU" in capsys.readouterr().err
