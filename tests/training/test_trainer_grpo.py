"""Runs that learn from their own answers: rollouts are a function of weights, seed and number, and resume is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy import on_ranks

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.eval.sandbox import sandbox_kind
from mify.export.hf import export_hf
from mify.files import read_json
from mify.model import Model
from mify.post.rewards import Answered
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.config import load_recipe
from mify.training.metrics import read_metrics, without_times
from mify.training.rollouts import sample_answers
from mify.training.trainer import train

CONTEXT = 48


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught nothing, its tokenizer, and tasks that a single number or word may solve."""
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"] * 4, 392)
    tokenizer.save(folder / "tokenizer")
    model = Model(ModelConfig("base", 2, 32, 2, 1, 16, 48, tokenizer.vocab_size, CONTEXT), seed=2)
    model.tokenizer = tokenizer
    export_hf(model, folder / "model")
    tasks = [
        {
            "id": f"t{n}",
            "prompt": f"x = {n}\ndef f(x):\n    return x #",
            "entry_point": "f",
            "tests": ["assert f(1) == 1"],
        }
        for n in range(7)
    ]
    tasks.append({"id": "long", "prompt": "x " * 60, "entry_point": "f", "tests": ["assert f(1) == 1"]})
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n", encoding="utf-8")
    return folder


def by_tokens(answered: Answered) -> float:
    """A reward that even noise can earn: few different letters."""
    return -len(set(answered.text)) / 10


def raises(answered: Answered) -> float:
    if answered.task.id == "t3":
        raise KeyError("t3")
    return by_tokens(answered)


def arguments(base: Path, runs: Path, *overrides: str) -> list[str]:
    """A recipe and what is changed of it."""
    return [
        str(Path(__file__).parent / "toy.toml"),
        f"--folder={runs}", "--objective=grpo", f"--data.sources.tasks.path={base / 'tasks.jsonl'}",
        "--data.sources.tasks.weight=1", f"--data.tokenizer={base / 'tokenizer'}", f"--data.context={CONTEXT}",
        f"--init.weights={base / 'model'}", "--data.fim.rate=0", "--data.rows_per_step=4", "--data.micro_rows=4",
        "--schedule.kind=constant", "--schedule.warmup_steps=0", "--schedule.decay_steps=none", "--steps=6",
        "--optimizer.learning_rate=3e-3", "--grpo.groups=4", "--grpo.group_size=4", "--grpo.max_new_tokens=12",
        "--grpo.steps_per_rollout=2", "--grpo.passes=2", "--checkpoint.every_steps=3", *overrides,
    ]  # fmt: skip


def settings(base: Path, runs: Path, *overrides: str) -> Any:
    recipe, *rest = arguments(base, runs, *overrides)
    return load_recipe(Path(recipe), rest)


REWARD = ["--grpo.rewards.tests=0.1", "--grpo.rewards.format=none", f"--grpo.rewards.{__name__}:by_tokens=1.0"]


def quiet(step: int, steps: int, record: dict[str, Any]) -> None:
    pass


def records(run: Path) -> list[dict[str, Any]]:
    return without_times(read_metrics(run / "metrics.jsonl"))


def test_a_run_stopped_amid_a_rollout_goes_on_exactly(base: Path, tmp_path: Path) -> None:
    kl = "--grpo.kl_weight=0.02"
    whole = train(settings(base, tmp_path, *REWARD, kl, "--name=whole"), quiet)
    train(settings(base, tmp_path, *REWARD, kl, "--name=parts", "--steps=3"), quiet)  # 3 of a rollout's 4 updates
    state = read_json(tmp_path / "parts" / "checkpoints" / "step-00000003" / "state.json")
    assert len(state["stream"]["rollout"]) == 16
    parts = train(settings(base, tmp_path, *REWARD, kl, "--name=parts"), quiet)
    assert records(whole.folder) == records(parts.folder)
    assert whole.ledger == parts.ledger
    steps = [record for record in records(whole.folder) if "loss" in record]
    assert [record["rollout"] for record in steps] == [0, 0, 0, 0, 1, 1]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl"] > 0
    assert whole.ledger["tasks"]["too_long"] == 1
    kept = read_json(tmp_path / "whole" / "rollouts" / "rollout-00000001.json")
    assert len(kept["answers"]) == 16
    assert {answer["task"] for answer in kept["answers"]} <= {f"t{n}" for n in range(7)}
    # Rollouts are a function of the seed, too.
    other = train(settings(base, tmp_path, *REWARD, "--name=other", "--steps=1", "--seed=9"), quiet)
    assert records(other.folder)[0]["reward"] != steps[0]["reward"]


def test_another_model_to_start_from_is_refused(base: Path, tmp_path: Path) -> None:
    train(settings(base, tmp_path, *REWARD, "--name=a", "--steps=3"), quiet)
    other = Model(ModelConfig("base", 2, 32, 2, 1, 16, 48, 392, CONTEXT), seed=3)
    other.tokenizer = Tokenizer.load(base / "tokenizer")
    changed = tmp_path / "changed"
    export_hf(other, changed)
    moved = settings(base, tmp_path, *REWARD, "--name=a", f"--init.weights={changed}")
    with pytest.raises(MifyError, match=r"init\.weights|first weights"):
        train(moved, quiet)


def test_a_reward_that_raises_is_counted_or_stops_the_run(base: Path, tmp_path: Path) -> None:
    name = f"{__name__}:raises"
    rewards = [
        "--grpo.rewards.tests=0.0",
        "--grpo.rewards.format=none",
        f"--grpo.rewards.{name}=1.0",
        "--grpo.groups=8",
    ]
    found = train(settings(base, tmp_path, *rewards, "--name=on", "--steps=1"), quiet)
    (record,) = [record for record in records(found.folder) if "loss" in record]
    assert record["reward_errors"] == {f"{name}: KeyError": 4}
    assert found.ledger["tasks"]["counted"][f"{name}: KeyError"] == 4
    with pytest.raises(MifyError, match=f"the reward {name} raised KeyError on an answer to t3"):
        train(settings(base, tmp_path, *rewards, "--grpo.on_error=stop", "--name=stop", "--steps=1"), quiet)


def test_answers_depend_on_their_number_and_the_seed(base: Path) -> None:
    from mify.loading import load

    model = load(base / "model")
    options: dict[str, Any] = {"end": 0, "max_new_tokens": 8, "temperature": 1.0, "log_probs": True}
    four = sample_answers(model, [[5, 300]] * 4, seed=1, **options)
    two = sample_answers(model, [[5, 300]] * 2, seed=1, sequences=1, **options)
    assert [answer[0] for answer in four[:2]] == [answer[0] for answer in two]
    assert len({tuple(answer[0]) for answer in four}) > 1
    assert [a[0] for a in four] != [a[0] for a in sample_answers(model, [[5, 300]] * 4, seed=2, **options)]
    for tokens, finished, log_probs in four:
        assert log_probs is not None
        assert len(log_probs) == len(tokens)
        assert (tokens[-1] == 0) is finished


@pytest.mark.parametrize("ranks", [1, 2])
def test_sharded_weights_in_bf16_roll_out_the_same_for_any_number_of_ranks(
    base: Path, tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 2 and in 4 groups of which ranks take turns; with log-probabilities of sampler, trainer and reference."""
    held_out = f"--grpo.held_out={base / 'held_out.jsonl'}"
    (base / "held_out.jsonl").write_bytes((base / "tasks.jsonl").read_bytes().split(b"\n")[0])
    options = [*REWARD, "--steps=2", "--grpo.kl_weight=0.02", "--grpo.groups=6", held_out]
    train(settings(base, tmp_path, *options, "--name=plain"), quiet)
    (expected, *_) = records(tmp_path / "plain")
    bf16 = [*options, "--name=bf16", "--parallel.precision=bf16"]
    if ranks == 1:
        train(settings(base, tmp_path, *bf16), quiet)
    else:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        on_ranks(ranks, ["-m", "mify.training.train", *arguments(base, tmp_path, *bf16)])
    (found, *_) = records(tmp_path / "bf16")
    answers = [
        read_json(tmp_path / name / "rollouts" / "rollout-00000000.json")["answers"] for name in ("plain", "bf16")
    ]
    same = sum(a["answer"] == b["answer"] for a, b in zip(*answers, strict=True))
    assert same > 12, f"{same} of 24 answers are those of fp32"  # bf16 draws another token now and then
    assert [a["task"] for a in answers[0]] == [b["task"] for b in answers[1]]
    assert found["reward"] == pytest.approx(expected["reward"], abs=0.1)
    assert found["entropy"] == pytest.approx(expected["entropy"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["fsdp"], ["none"], ["hsdp", "--lora.rank=4"]], ids=lambda more: more[0])
def test_two_ranks_learn_from_the_answers_of_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (base / "three.jsonl").write_bytes(b"\n".join((base / "tasks.jsonl").read_bytes().split(b"\n")[:3]))
    options = [
        *REWARD, "--grpo.kl_weight=0.02", "--grpo.groups=3", "--grpo.steps_per_rollout=3", "--grpo.passes=1",
        f"--grpo.held_out={base / 'three.jsonl'}", "--evaluation.every_steps=3", f"--parallel.shard={more[0]}",
        *more[1:],
    ]  # fmt: skip
    train(settings(base, tmp_path, *options, "--name=one"), quiet)
    on_ranks(2, ["-m", "mify.training.train", *arguments(base, tmp_path, *options, "--name=two")])
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            expected = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert second[key] == expected, key
    kept = [read_json(tmp_path / name / "rollouts" / "rollout-00000001.json")["answers"] for name in ("one", "two")]
    assert [answer["answer"] for answer in kept[0]] == [answer["answer"] for answer in kept[1]]


@pytest.mark.slow
def test_what_stops_one_rank_stops_all(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that a reward fails on is one rank's alone; the other ends as it does and does not wait for it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    failing = ["--grpo.rewards.tests=0.0", f"--grpo.rewards.{__name__}:raises=1.0", "--grpo.on_error=stop"]
    options = arguments(base, tmp_path, *failing, "--grpo.groups=8", "--name=stopped", "--steps=1")
    on_ranks(2, ["-m", "mify.training.train", *options], status=2)


def test_mistakes_in_the_configuration_are_named(base: Path, tmp_path: Path) -> None:
    for override, problem in (
        ("--grpo.group_size=1", "judged against its group"),
        ("--grpo.steps_per_rollout=3", "no multiple of grpo.steps_per_rollout"),
        ("--grpo.max_new_tokens=48", "leaves no room"),
        ("--grpo.clip_low=1.5", "clip_low lies between"),
        ("--grpo.temperature=0", "temperature = 0"),
        ("--init.weights=none", "starts from a model"),
        ('--data.skip=["0123456789abcdef"]', "cannot blank a task"),
    ):
        with pytest.raises(MifyError, match=problem):
            settings(base, tmp_path, override)
    with pytest.raises(MifyError, match="no reward 'speed'"):
        train(settings(base, tmp_path, "--grpo.rewards.speed=1.0", "--name=x"), quiet)
    with pytest.raises(MifyError, match="held-out task long has 120 tokens"):
        train(settings(base, tmp_path, f"--grpo.held_out={base / 'tasks.jsonl'}", "--name=y"), quiet)
