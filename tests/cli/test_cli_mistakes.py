"""Mistakes that people make at the command line: each is named with its remedy, and nothing of theirs is touched."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mify.cli.app import app
from mify.config import ModelConfig
from mify.endpoint import Endpoint
from mify.errors import MifyError
from mify.eval import endpoint
from mify.export.hf import export_hf
from mify.loading import load
from mify.model import Model
from mify.tokenizer import train_tokenizer
from mify.training.config import load_recipe, recipe_names
from mify.training.trainer import train


def mify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, problem: str, remedy: str = "") -> None:
    assert result.exit_code == 2, result.output
    assert not result.exception or isinstance(result.exception, SystemExit)
    said = " ".join(result.output.split())
    assert problem in said
    assert f"-> {remedy}" in said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"] * 4, 392)
    made = Model(ModelConfig("base", 1, 32, 2, 1, 16, 48, 392, 64), seed=2)
    made.tokenizer = tokenizer
    return export_hf(made, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    line = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path / "chat.jsonl"


@pytest.mark.parametrize("command", [["export", "--to", "hf"], ["quantize", "--to", "fp8"], ["import"]])
def test_a_model_is_not_written_over_itself_or_over_what_is_no_model(
    model: Path, tmp_path: Path, command: list[str]
) -> None:
    before = (model / "model.safetensors").read_bytes()
    name, *options = command
    refused(mify(name, model, *options, "--out", model), "is the source itself")
    refused(mify(name, model, *options, "--out", model.parent), f"holds the source {model}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(
        mify(name, model, *options, "--out", tmp_path / "mine"), "holds something else", "name a folder that is new"
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (model / "model.safetensors").read_bytes() == before
    refused(mify(name, model, *options, "--out", "/proc/absent/model"), "cannot be written")
    # Its own output it writes anew.
    for _ in range(2):
        assert mify(name, model, *options, "--out", tmp_path / "out").exit_code == 0


def test_fresh_deletes_results_and_nothing_else(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = mify("eval", model, "--tasks", "humaneval", "--limit", "1", "--out", tmp_path, "--fresh")
    refused(done, "holds something else")
    assert (tmp_path / "thesis.txt").exists()


def test_an_endpoint_that_answers_nothing_is_no_score_of_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "Endpoint", functools.partial(Endpoint, pauses=()))
    url = "http://127.0.0.1:9/v1"
    done = mify("eval", url, "--endpoint-model", "x", "--tasks", "humaneval", "--limit", "1", "--out", tmp_path / "e")
    refused(done, "x answered nothing", "mend that and run again")


def test_an_endpoint_s_model_goes_with_an_address(model: Path, tmp_path: Path) -> None:
    done = mify("eval", model, "--endpoint-model", "x", "--tasks", "humaneval", "--out", tmp_path / "e")
    refused(done, "--endpoint-model x goes with an endpoint's address")


def test_a_backend_that_is_none_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIFY_IMPL", "nosuch")
    refused(mify("generate", model, "x"), "impl 'nosuch' is no backend of", "unset MIFY_IMPL")
    monkeypatch.setenv("MIFY_IMPL", "nosuch=ref")
    refused(mify("generate", model, "x"), "names the unknown op 'nosuch'", "unset MIFY_IMPL")


def test_conversion_of_nothing_but_rejects_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("not json\n")
    assert mify("convert", tmp_path / "bad.jsonl", "--out", tmp_path / "out").exit_code == 1


def test_a_curve_that_is_not_there(tmp_path: Path) -> None:
    refused(mify("plan", "mify-tiny", "--tokens", "1M", "--curve", tmp_path / "no.json"), "no.json does not exist")


def recipe(model: Path, chat: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        "sft-tiny", f"--init.weights={model}", f"--data.tokenizer={model}", f"--data.sources.chat.path={chat}",
        f"--folder={runs}", "--data.context=32", "--data.rows_per_step=2", "--data.micro_rows=none", "--steps=2",
        "--schedule.warmup_steps=0", "--schedule.kind=constant", *overrides,
    ]  # fmt: skip


def test_keys_and_values_are_joined() -> None:
    for written in (["--steps", "3"], ["steps=3"]):
        with pytest.raises(MifyError) as caught:
            load_recipe("demo", written)
        assert caught.value.problem == f"cannot read the argument '{written[0]}'"
        assert caught.value.remedy in (
            "join key and value: --steps=VALUE",
            "write --key=value: --optimizer.learning_rate=3e-4",
        )


def test_weights_to_start_from_that_are_not_there_are_named_by_their_key(
    model: Path, chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(MifyError, match=r"init\.weights: .*absent does not exist"):
        train(load_recipe(*split(recipe(tmp_path / "absent", chat, tmp_path, f"--data.tokenizer={model}"))))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_planned_before_its_weights_are_there(name: str) -> None:
    shown = mify("train", name, "--dry-run")
    assert shown.exit_code == 0, shown.output


def test_a_start_that_failed_claims_no_folder(model: Path, chat: Path, tmp_path: Path) -> None:
    """Who mends the key that was wrong need not think of a new name; a run with a checkpoint is held to its keys."""
    with pytest.raises(MifyError, match=r"holds no \.jsonl"):
        train(load_recipe(*split(recipe(model, tmp_path / "absent", tmp_path))))
    with pytest.raises(MifyError, match="sft-tiny has no checkpoint yet"):
        load(tmp_path / "sft-tiny")
    assert train(load_recipe(*split(recipe(model, chat, tmp_path)))).step == 2
    with pytest.raises(MifyError, match=r"another configuration: data\.context changed"):
        train(load_recipe(*split(recipe(model, chat, tmp_path, "--data.context=16"))))


def split(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[0], arguments[1:]
