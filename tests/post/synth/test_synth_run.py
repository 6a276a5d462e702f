"""Runs of recipes: failures, kills, changed recipes, ceilings; counts reconcile and no answer is paid for twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import ScriptedEndpoint, grid_recipe, number_of, teacher

from mify.errors import MifyError
from mify.post.chat import Conversation
from mify.post.synth.ledger import Ledger
from mify.post.synth.recipe import recipe_of
from mify.post.synth.run import Result, read_report, run

pytest.importorskip("openai")
FAULTS: list[Any] = [
    None, None, (429, {"Retry-After": "0.02"}, "slow"), (500, {}, "oops"), "reset", "half", "garbage", "null",
]  # fmt: skip


def first_try_fails(body: dict[str, Any], number: int) -> Any:
    return FAULTS[number_of(json.dumps(body["messages"]) + str(body["seed"])) % len(FAULTS)] if number == 1 else None


def files(folder: Path) -> dict[str, bytes]:
    """All that a run left but its ledger and report, which tell of tries."""
    found = [path for path in folder.rglob("*") if path.is_file() and "requests" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name[:7] != "report."}


def reconciles(result: Result) -> None:
    for row in result.report["stages"]:
        assert row["in"] == row["kept"] + sum(row["rejected"].values()), row["name"]
    kept = {row["name"]: row["kept"] for row in result.report["stages"]}
    for row in result.report["stages"]:
        if row["inputs"]:
            assert row["in"] == sum(kept[name] for name in row["inputs"])


def test_failures_cost_tries_and_nothing_else(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    smooth, rough = serve(), serve(first_try_fails)
    one = run(recipe_of(grid_recipe(smooth.url)), tmp_path / "smooth")
    other = run(recipe_of(grid_recipe(rough.url)), tmp_path / "rough")
    assert files(tmp_path / "smooth") == files(tmp_path / "rough")
    reconciles(one)
    reconciles(other)
    assert one.report["conversations"]["count"] > 30
    assert len(smooth.asked) == len(rough.asked) == 48
    assert one.report["account"]["tries"] == sum(smooth.asked.values()) == 48
    assert other.report["account"]["tries"] == sum(rough.asked.values()) > 70
    for line in (tmp_path / "rough" / "conversations.jsonl").read_text().splitlines():
        conversation = Conversation.from_json(line)
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        assert conversation.extra["origin"]["model"] == "teacher"
    assert read_report(tmp_path / "rough")["account"] == other.report["account"]
    page = (tmp_path / "rough" / "report.html").read_text()
    assert "no problem" in page
    assert "http://" not in page.replace(rough.url, "").replace("http://www.w3.org", "")


def test_equal_requests_are_sent_once(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve()
    values = grid_recipe(server.url)
    values["stages"] |= {
        "again": {**values["stages"]["grid"], "temperature": 0.8},
        "all": {"kind": "format", "inputs": ["grid", "again"]},
    }
    run(recipe_of(values), tmp_path)
    assert len(server.asked) == 96  # another stage draws other seeds
    values["stages"]["mirror"] = {"kind": "read", "path": str(tmp_path / "stages" / "grid.kept.jsonl")}
    values["stages"]["merged"] = {"kind": "format", "inputs": ["grid", "mirror"]}
    result = run(recipe_of(values), tmp_path)
    assert sum(server.asked.values()) == 96
    merged = next(row for row in result.report["stages"] if row["name"] == "merged")
    assert merged["rejected"]["an id that came before"] == 48
    reconciles(result)


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mify", "synth", str(recipe), "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"}
    )


def kill_and_finish(server: ScriptedEndpoint, recipe: Path, out: Path, kills: int, seed: int) -> None:
    """SIGKILL at random moments, then a run to the end; what was in the ledger at a kill is never asked again."""
    moments = random.Random(seed)
    total = 48
    settled: dict[str, int] = {}
    parallel = 6
    for _ in range(kills):
        process = start(recipe, out)
        target = min(sum(server.finished.values()) + moments.randrange(1, 2 + total // kills), total - 1)
        until = time.monotonic() + 60
        while sum(server.finished.values()) < target and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.06)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        time.sleep(0.15)  # what the server still had in hand is through
        with Ledger(out / "requests.jsonl") as ledger:
            for key in server.asked:
                if key in ledger:
                    assert settled.setdefault(key, server.asked[key]) == server.asked[key], "answered, and asked again"
    process = start(recipe, out)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed.decode()
    for key, asked in settled.items():
        assert server.asked[key] == asked
    report = read_report(out)
    repeated = sum(server.asked.values()) - len(server.asked)
    assert repeated <= report["account"]["interrupted"] <= kills * parallel
    assert len(server.asked) == report["account"]["answered"]


@pytest.mark.parametrize(("kills", "seed"), [(3, 1), pytest.param(25, 2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_repeated_or_lost(
    serve: Callable[..., ScriptedEndpoint], tmp_path: Path, kills: int, seed: int
) -> None:
    server = serve(delay=0.08)
    values = grid_recipe(server.url)
    recipe = tmp_path / "recipe.json.toml"
    recipe.write_text(as_toml(values))
    kill_and_finish(server, recipe, tmp_path / "killed", kills, seed)
    assert len(server.asked) == 48
    run(recipe_of(grid_recipe(serve().url)), tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_interrupted_by_hand_it_waits_for_what_is_paid(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve(delay=0.1)
    (tmp_path / "r.toml").write_text(as_toml(grid_recipe(server.url)))
    process = start(tmp_path / "r.toml", tmp_path / "out")
    until = time.monotonic() + 60
    while sum(server.finished.values()) < 5 and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed.decode()
    with Ledger(tmp_path / "out" / "requests.jsonl") as ledger:
        assert not ledger.interrupted
        assert 5 <= len(ledger) == sum(server.asked.values()) < 48
    run(recipe_of(grid_recipe(server.url)), tmp_path / "out")
    assert len(server.asked) == sum(server.asked.values()) == 48


def test_a_changed_recipe_is_named_and_rebuilt_without_paying_again(
    serve: Callable[..., ScriptedEndpoint], tmp_path: Path
) -> None:
    server = serve()
    values = grid_recipe(server.url)
    run(recipe_of(values), tmp_path)
    values["stages"]["format"]["min_tests"] = 3
    with pytest.raises(MifyError, match=r"the stage format was made with another recipe \(settings.min_tests\)"):
        run(recipe_of(values), tmp_path)
    result = run(recipe_of(values), tmp_path, rebuild=True)
    reconciles(result)
    assert sum(server.asked.values()) == 48
    values["stages"]["grid"]["topics"].append("sorting")
    with pytest.raises(MifyError, match=r"the stage grid .*settings.topics"):
        run(recipe_of(values), tmp_path)
    assert sum(server.asked.values()) == 48
    run(recipe_of(values), tmp_path, rebuild=True)
    assert sum(server.asked.values()) == len(server.asked) == 60  # the new topic alone
    values["endpoints"]["teacher"]["url"] = serve().url  # the same model elsewhere is no change
    assert run(recipe_of(values), tmp_path).report["account"]["requests"] == 60
    values["endpoints"]["teacher"]["model"] = "another"
    with pytest.raises(MifyError, match="models.teacher"):
        run(recipe_of(values), tmp_path)


def test_requests_without_an_answer_are_counted_and_asked_again(
    serve: Callable[..., ScriptedEndpoint], tmp_path: Path
) -> None:
    broken = [True]

    def fault(body: dict[str, Any], number: int) -> Any:
        share = number_of(json.dumps(body["messages"]) + str(body["seed"])) % 4
        if share == 1:
            return (400, {}, "too long")
        return (503, {}, "overloaded") if share == 0 and broken[0] else None

    server = serve(fault)
    recipe = recipe_of(grid_recipe(server.url))
    first = run(recipe, tmp_path)
    grid = first.report["stages"][0]
    assert grid["rejected"].keys() == {"no answer: HTTP 400", "no answer: HTTP 503"}
    assert grid["unanswered"] == grid["rejected"]["no answer: HTTP 503"]
    broken[0] = False
    asked = server.asked.copy()
    second = run(recipe, tmp_path)
    assert second.report["stages"][0]["rejected"] == {"no answer: HTTP 400": grid["rejected"]["no answer: HTTP 400"]}
    assert second.report["conversations"]["count"] > first.report["conversations"]["count"]
    again = [key for key in asked if server.asked[key] > asked[key]]
    assert len(again) == grid["unanswered"]
    reconciles(second)


def test_an_endpoint_that_refuses_ends_the_run(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve(lambda body, number: (401, {}, "who are you?"))
    with pytest.raises(MifyError, match="HTTP 401"):
        run(recipe_of(grid_recipe(server.url)), tmp_path)
    assert sum(server.asked.values()) <= 6
    with Ledger(tmp_path / "requests.jsonl") as ledger:
        assert not ledger.interrupted


def test_a_ceiling_stops_and_a_higher_one_goes_on(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve()
    values = grid_recipe(server.url, budget={"max_cost": 0.02})
    values["endpoints"]["teacher"]["price"] = {"input": 10.0, "output": 20.0}
    stopped = run(recipe_of(values), tmp_path)
    assert "the ceiling of 0.02 is reached" in stopped.stopped
    assert "conversations" not in stopped.report
    billed = (server.tokens["prompt_tokens"] * 10.0 + server.tokens["completion_tokens"] * 20.0) / 1e6
    assert stopped.report["account"]["cost"] == pytest.approx(billed)
    assert 0.008 < billed <= 0.02
    values["budget"]["max_cost"] = 10.0
    result = run(recipe_of(values), tmp_path)
    assert not result.stopped
    assert sum(server.asked.values()) == len(server.asked) == 48
    assert result.report["account"]["cost"] == pytest.approx(
        (server.tokens["prompt_tokens"] * 10.0 + server.tokens["completion_tokens"] * 20.0) / 1e6
    )


def test_a_damaged_stage_is_made_again(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve()
    recipe = recipe_of(grid_recipe(server.url))
    run(recipe, tmp_path)
    before = files(tmp_path)
    path = tmp_path / "stages" / "grid.kept.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "stages" / "format.rejected.jsonl").unlink()
    run(recipe, tmp_path)
    assert files(tmp_path) == before
    assert sum(server.asked.values()) == 48


def test_nonsense_is_rejected_by_name(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    nonsense = [
        "",
        " \n",
        "\x00\ud800",
        "## Problem",
        "```" * 50,
        "a" * 5000,
        teacher({"model": "t", "messages": [], "seed": 3}),
    ]
    server = serve(answer=lambda body: nonsense[number_of(str(body["seed"])) % len(nonsense)])
    result = run(recipe_of(grid_recipe(server.url)), tmp_path)
    reconciles(result)
    assert set(result.report["stages"][1]["rejected"]) >= {
        "no problem",
        "a code block is not closed",
        "an empty answer",
    }


def test_the_command(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mify.cli.app import app

    server = serve()
    values = grid_recipe(server.url, budget={"max_requests": 10})
    (tmp_path / "r.toml").write_text(as_toml(values))
    arguments = ["synth", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")]
    runner = CliRunner()
    planned = runner.invoke(app, [*arguments, "--dry-run"])
    assert planned.exit_code == 0
    assert "48" in planned.output
    assert "14,400" in planned.output
    assert not server.asked
    assert not (tmp_path / "out").exists()
    stopped = runner.invoke(app, arguments)
    assert stopped.exit_code == 1
    assert "the ceiling of 10 requests" in stopped.output
    (tmp_path / "r.toml").write_text(as_toml(grid_recipe(server.url)))
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0
    assert "no problem" in done.output
    assert len(server.asked) == sum(server.asked.values()) == 48
    assert runner.invoke(app, ["synth"]).exit_code == 2
    for option in ("--example", "--kinds"):
        assert "execution" in runner.invoke(app, ["synth", option]).output


def as_toml(values: dict[str, Any]) -> str:
    """Nested tables as TOML; JSON spells strings, numbers and lists alike."""
    lines: list[str] = []

    def table(name: str, node: dict[str, Any]) -> None:
        lines.append(f"[{name}]" if name else "")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in node.items() if not isinstance(value, dict))
        for key, value in node.items():
            if isinstance(value, dict):
                table(f"{name}.{key}".lstrip("."), value)

    table("", values)
    return "\n".join(lines)
