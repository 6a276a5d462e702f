"""The judge stage: what judges say, how they agree, how far they are right, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import ScriptedEndpoint, number_of

from mify.errors import MifyError
from mify.post.synth.recipe import recipe_of
from mify.post.synth.report_page import judge_verdict, page
from mify.post.synth.run import Result, run

pytest.importorskip("openai")
NAMES = ("correctness", "clarity", "usefulness", "quality")


def programs(path: Path, count: int = 60) -> None:
    """Samples with tests; every third is wrong."""
    rows = []
    for n in range(count):
        code = f"def add_{n}(x):\n    return x + {n if n % 3 else n + 1}"
        tests = f"assert add_{n}(1) == {n + 1}\nassert add_{n}(0) == {n}"
        problem = f"Write add_{n}(x), which takes a whole number and gives that number plus {n}."
        sample = {"id": f"s{n}", "problem": problem, "answer": f"```python\n{code}\n```", "language": "python"}
        rows.append({**sample, "code": code, "tests": tests})
    path.write_text("\n".join(map(json.dumps, rows)))


def grades(value: int, **changes: Any) -> str:
    return json.dumps({"reason": "…", **dict.fromkeys(NAMES, value), **changes})


def number(body: dict[str, Any]) -> int:
    question = body["messages"][-1]["content"]
    return int(question.split("Write add_")[1].split("(")[0])


def sees(body: dict[str, Any]) -> str:
    """Knows right from wrong."""
    return grades(4 if number(body) % 3 else 2)


def tosses(body: dict[str, Any]) -> str:
    """Knows nothing, and hears nothing of the code."""
    return grades(1 + number_of(body["messages"][-1]["content"]) % 5)


def recipe(url: str, folder: Path, judges: tuple[str, ...], **judge: Any) -> dict[str, Any]:
    programs(folder / "programs.jsonl")
    one = {"url": url, "parallel": 4, "pauses_s": [0.0]}
    return {
        "endpoints": {name: {**one, "model": name} for name in judges},
        "stages": {
            "read": {"kind": "read", "path": str(folder / "programs.jsonl")},
            "execution": {"kind": "execution", "workers": 1},
            "judge": {"kind": "judge", "endpoints": list(judges), **judge},
        },
    }


def last(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = result.report["stages"][-1]
    assert row["in"] == row["kept"] + sum(row["rejected"].values())
    return row


def test_judges_that_see_are_believed_and_those_that_toss_are_not(
    serve: Callable[..., ScriptedEndpoint], tmp_path: Path
) -> None:
    server = serve(answer=lambda body: {"sees": sees, "also": sees, "tosses": tosses}[body["model"]](body))
    seen = last(run(recipe_of(recipe(server.url, tmp_path, ("sees", "also"))), tmp_path / "seen"))
    assert seen["facts"]["reliability"]["panel"]["auc"]["value"] == 1.0
    assert seen["facts"]["reliability"]["programs"] == 60
    assert seen["facts"]["used"]
    assert (seen["kept"], seen["rejected"]) == (40, {})  # what failed its tests never came here
    assert seen["facts"]["agreement"]["alpha"]["clarity"]["value"] == 1.0
    assert seen["facts"]["agreement"]["samples"] == 60

    tossed = run(recipe_of(recipe(server.url, tmp_path, ("tosses",))), tmp_path / "tossed")
    row = last(tossed)
    auc = row["facts"]["reliability"]["panel"]["auc"]
    assert auc["low"] < 0.5 < auc["high"]
    assert not row["facts"]["used"]
    assert (row["kept"], row["rejected"]) == (40, {})
    assert "better than chance" in judge_verdict(row["facts"])
    assert "so they rejected nothing" in page(tossed.report)

    with pytest.raises(MifyError, match="do not tell passing from failing"):
        values = recipe(server.url, tmp_path, ("tosses",), when_unreliable="stop")
        run(recipe_of(values), tmp_path / "tossed", rebuild=True)
    values = recipe(server.url, tmp_path, ("tosses",), when_unreliable="use")
    used = last(run(recipe_of(values), tmp_path / "tossed", rebuild=True))
    assert used["facts"]["used"]
    assert 0 < used["kept"] < 40


def test_judges_hear_nothing_of_tests_and_verdicts(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve(answer=sees)
    run(recipe_of(recipe(server.url, tmp_path, ("sees",))), tmp_path / "out")
    assert len(server.bodies) == 60
    for body in server.bodies.values():
        said = json.dumps(body["messages"])
        assert "assert" not in said
        assert "passed" not in said
        assert body["response_format"]["json_schema"]["schema"]["required"][1:] == list(NAMES)


def test_answers_outside_the_rubric_are_counted_named_and_asked_once_more(
    serve: Callable[..., ScriptedEndpoint], tmp_path: Path
) -> None:
    outside = [
        grades(9), grades(3, clarity="good"), "It is fine.", grades(4, style=5), json.dumps({"correctness": 4}), "",
    ]  # fmt: skip

    def answer(body: dict[str, Any]) -> str:
        n = number(body)
        stubborn, first = n % 3 == 1 and n < 20, body["seed"] == 0
        return outside[n % len(outside)] if n < 30 and (first or stubborn) else sees(body)

    server = serve(answer=answer)
    result = run(recipe_of(recipe(server.url, tmp_path, ("sees",))), tmp_path / "out")
    row = last(result)
    judge = row["facts"]["judges"]["sees"]
    assert judge["out of rubric"] == {
        "a criterion that the rubric does not have": 5,
        "an empty answer": 5,
        "clarity is missing": 5 + 3,
        "clarity is no whole number": 5 + 4,
        "correctness is off the scale": 5,
        "no JSON": 5,
    }
    assert judge["answers"] == 60 + 30
    assert judge["graded"] == 60 - 7
    assert row["rejected"] == {"no judge gave an answer that counts": 7}
    assert judge["said"]["no JSON"] == ["It is fine."] * 3
    kept = run(recipe_of(recipe(server.url, tmp_path, ("sees",), undecided="keep")), tmp_path / "kept")
    assert last(kept)["kept"] == 40


def test_rules_for_several_judges(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        n = number(body)
        good = {"one": n % 2 == 0, "two": n % 2 == 0, "three": n % 2 == 1}[body["model"]]
        return grades((5 if good else 3) if n % 3 else 1)

    server = serve(answer=answer)
    for rule, kept in (("mean", 20), ("majority", 20), ("all", 0)):
        values = recipe(server.url, tmp_path, ("one", "two", "three"), rule=rule, calibrate=0)
        row = last(run(recipe_of(values), tmp_path / "out", rebuild=True))
        assert row["kept"] == kept
    agreement = row["facts"]["agreement"]
    assert [pair["judges"] for pair in agreement["pairs"]] == [["one", "two"], ["one", "three"], ["two", "three"]]
    assert [pair["verdicts"]["value"] for pair in agreement["pairs"]] == pytest.approx([1.0, -1.0, -1.0])
    assert agreement["verdicts"]["value"] == pytest.approx(-1 / 3, abs=0.02)
    assert sum(server.asked.values()) == 3 * 40  # another rule asks nothing again


def test_without_execution_nothing_is_claimed(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    values = recipe(serve(answer=sees).url, tmp_path, ("sees",))
    del values["stages"]["execution"]
    row = last(run(recipe_of(values), tmp_path / "out"))
    assert row["facts"]["reliability"] == {}
    assert "not measured" in judge_verdict(row["facts"])
    assert row["rejected"] == {"correctness below 3": 20}
    values["stages"]["judge"]["calibrate_on"] = "running"
    with pytest.raises(MifyError, match="calibrate_on = 'running' is no stage before it"):
        run(recipe_of(values), tmp_path / "other")
