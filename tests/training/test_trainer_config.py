"""Recipes and overrides: typed, inherited, refused with the nearest name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import toy_config

from mify.errors import MifyError
from mify.training.config import TrainConfig, changed_keys, load_recipe, recipe_names


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_survives_json(name: str) -> None:
    config = load_recipe(name)
    assert config.steps > 0
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.description


def test_recipes_extend_and_overrides_win(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", 'name = "base"\nsteps = 100\n[optimizer]\nlearning_rate = 1e-3\nclip_norm = 2\n')
    child = write(tmp_path, "child.toml", 'extends = "base.toml"\nname = "child"\n[optimizer]\nclip_norm = "none"\n')
    config = load_recipe(
        child, ["--optimizer.learning-rate=2e-4", "--data.sources.code.path=a b", "--data.sources.code.weight=78"]
    )
    assert (config.name, config.steps) == ("child", 100)
    assert config.optimizer.clip_norm is None
    assert config.optimizer.learning_rate == 2e-4
    assert config.data.sources["code"].path == "a b"
    assert config.data.sources["code"].weight == 78.0


@pytest.mark.parametrize(
    ("override", "problem", "remedy"),
    [
        ("--optimizer.learning_rat=1", "unknown key optimizer.learning_rat", "optimizer.learning_rate"),
        ("--stepz=1", "unknown key stepz", "steps"),
        ("--steps=many", "steps = 'many' is not a whole number", "steps"),
        ("--steps=1.5", "steps = 1.5 is not a whole number", "steps"),
        ("--parallel.compile=1", "parallel.compile = 1 is not true or false", "parallel.compile"),
        ("--schedule.kind=cosin", "schedule.kind = 'cosin' is not known", "cosine"),
        ("--data=3", "data = '3' is not a table of keys", "data"),
        ("--data.fim.domains=code", "data.fim.domains = 'code' is not a list", "list"),
        ("--data.rows_per_step=0", "data.rows_per_step = 0 must be above 0", "rows_per_step"),
        ("--data.fim.rate=1.5", "data.fim.rate = 1.5 must lie between 0 and 1", "share"),
        ("--data.micro_rows=3", "no multiple of data.micro_rows", "divides"),
        ("--schedule.warmup_steps=11", "pass steps", "longer"),
        ("--name=a/b", "no folder name", "plain name"),
        ("--data.sources.code.weight=1", "data.sources.code.path is missing", "data.sources.code.path"),
        ("steps=3", "cannot read the argument", "--optimizer.learning_rate=3e-4"),
    ],
)
def test_a_wrong_key_or_value_names_the_right_one(tmp_path: Path, override: str, problem: str, remedy: str) -> None:
    with pytest.raises(MifyError) as caught:
        toy_config(tmp_path, override)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_broken_and_missing_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="did you mean demo"):
        load_recipe("dmo")
    with pytest.raises(MifyError, match=r"absent\.toml does not exist"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(MifyError, match="not valid TOML"):
        load_recipe(write(tmp_path, "bad.toml", "steps = = 3"))
    with pytest.raises(MifyError, match="the key steps is missing"):
        load_recipe(write(tmp_path, "short.toml", 'name = "short"'))
    write(tmp_path, "a.toml", 'extends = "b.toml"')
    with pytest.raises(MifyError, match="extends itself"):
        load_recipe(write(tmp_path, "b.toml", 'extends = "a.toml"'))


def test_the_hash_is_of_the_arithmetic_alone(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    assert toy_config(tmp_path / "elsewhere", "--name=other", "--logging.every_steps=5").hash == config.hash
    assert toy_config(tmp_path, "--seed=4").hash != config.hash
    assert toy_config(tmp_path, "--parallel.threads=2").hash != config.hash


def test_what_may_change_on_resume(tmp_path: Path) -> None:
    old = toy_config(tmp_path).to_dict()
    free = ["--steps=99", "--parallel.threads=2", "--checkpoint.every_steps=1", "--data.micro_rows=2"]
    assert changed_keys(old, toy_config(tmp_path, *free).to_dict()) == []
    fixed = [
        "--seed=9",
        "--data.fim.rate=0.5",
        "--model.num_layers=3",
        "--data.sources.x.path=p",
        "--data.sources.x.weight=1",
    ]
    assert changed_keys(old, toy_config(tmp_path, *fixed).to_dict()) == [
        "data.fim.rate",
        "data.sources",
        "data.sources.x.path",
        "data.sources.x.weight",
        "model.num_layers",
        "seed",
    ]


def test_the_command_line_ends_in_2_for_a_mistake_and_prints_no_traceback() -> None:
    command = [sys.executable, "-m", "mify.training.train", "demo", "--optimiser.learning_rate=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "mify: unknown key optimiser\n  -> did you mean optimizer?\n"


def test_the_plan_is_the_cost_models_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mify.config import model_config
    from mify.training.plan import make_plan, print_config, print_plan

    config = load_recipe("cpt-2.5b")
    plan = make_plan(config)
    shape = model_config("mify-2.5b")
    assert plan.tokens == 95_400 * 256 * 8192
    assert plan.checkpoint_bytes == 12 * shape.num_parameters()
    assert {name: round(source.share, 4) for name, source in plan.sources.items()} == {
        "code": 0.78,
        "text": 0.12,
        "math": 0.1,
    }
    # 6 N a token for the matrices, and 6 L H D (context + 1) for the scores and values of causal attention.
    matrices = shape.num_parameters() - shape.vocab_size * shape.hidden_size
    scores = 6 * shape.num_layers * shape.num_query_heads * shape.head_dim * (8192 + 1)
    assert plan.flops_per_token == pytest.approx(6 * matrices + scores, rel=1e-3)
    print_config(config)
    print_plan(config)
    shown = capsys.readouterr().out
    assert "learning_rate = 0.0001" in shown
    assert "shards not" in shown
