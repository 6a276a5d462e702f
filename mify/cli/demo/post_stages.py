"""The demo's further way, `--post`: from the base model to one that answers, prefers and earns, a function a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.cli.demo.pipeline import Report, Stage
from mify.files import atomic_file, text_lines

if TYPE_CHECKING:
    from mify.model import Model
    from mify.training.config import TrainConfig

LENGTHS = (2,)  # operations of a verifiable spec


@dataclass(frozen=True)
class PostConfig:
    """How much of it. The defaults take about four minutes on two idle cores."""

    seed: int = 0
    functions: int = 600  # docstring → function, to learn from
    specs: int = 400  # verifiable specs with their answers
    tasks: int = 1000  # and without
    held_out: int = 100  # functions, and specs, to measure on
    pairs: int = 120  # of a function and what the model wrote instead
    sft_steps: int | None = None  # None: the recipe's
    dpo_steps: int | None = None
    grpo_steps: int | None = None


def post_stages(config: PostConfig) -> list[Stage]:
    """The stages in order; they read `curate` and `train` of the demo."""
    from mify.training.config import load_recipe

    sizes = {"seed": config.seed, "functions": config.functions, "specs": config.specs, "tasks": config.tasks}
    sizes["held_out"] = config.held_out

    def settings(recipe: str, steps: int | None) -> dict[str, Any]:
        return {"recipe": load_recipe(recipe).hash, "steps": steps, "seed": config.seed}

    return [
        Stage("instructions", "Instructions", sizes, ("curate",), ("post/data",), partial(instructions, config)),
        Stage("sft", "SFT", settings("demo-sft", config.sft_steps), ("instructions", "train"), ("post/demo-sft",),
              partial(sft, config)),
        Stage("dpo", "DPO", {**settings("demo-dpo", config.dpo_steps), "pairs": config.pairs}, ("instructions", "sft"),
              ("post/demo-dpo", "post/pairs"), partial(dpo, config)),
        Stage("grpo", "GRPO", settings("demo-grpo", config.grpo_steps), ("instructions", "sft"), ("post/demo-grpo",),
              partial(grpo, config)),
    ]  # fmt: skip


def instructions(config: PostConfig, folder: Path, report: Report) -> dict[str, Any]:
    """corpus → post/data: functions, specs and tasks to learn from, held-out ones to measure on, as .jsonl."""
    from mify.cli.demo.stages import _documents
    from mify.post.docstring_tasks import docstring_tasks
    from mify.post.task_family import draw_specs, write_conversations, write_tasks

    out = folder / "post" / "data"
    out.mkdir(parents=True, exist_ok=True)
    report("docstrings", 0, 4)
    found = _chosen(list(docstring_tasks(_documents(folder))), config.functions)
    report("held-out docstrings", 1, 4)
    seen = {task.question for task in found}
    kept_out = [task for task in docstring_tasks(_documents(folder, "held_out")) if task.question not in seen]
    held_out = _chosen(kept_out, config.held_out)
    _write_lines([task.to_dict() for task in found], out / "functions.jsonl")
    _write_lines([task.to_dict() for task in held_out], out / "held_out_functions.jsonl")
    report("specs", 2, 4)
    answered = draw_specs(config.specs, seed=config.seed, held_out=False, lengths=LENGTHS)
    known = {spec.task.id for spec in answered}
    drawn = draw_specs(config.tasks + config.specs, seed=config.seed + 1, held_out=False, lengths=LENGTHS)
    write_conversations(answered, out / "specs.jsonl")
    write_tasks([spec for spec in drawn if spec.task.id not in known][: config.tasks], out / "tasks.jsonl")
    write_tasks(
        draw_specs(config.held_out, seed=config.seed, held_out=True, lengths=LENGTHS), out / "held_out_tasks.jsonl"
    )
    report("done", 4, 4)
    line = (
        f"{len(found)} functions by their docstrings, {config.specs} specs; {len(held_out)} and {config.held_out} kept"
    )
    return {"functions": len(found), "held_out_functions": len(held_out), "line": line}


def sft(config: PostConfig, folder: Path, report: Report) -> dict[str, Any]:
    """The base model → post/demo-sft, on functions and specs."""
    from mify.loading import load

    data = folder / "post" / "data"
    settings = _recipe(
        "demo-sft", config.sft_steps, config.seed, folder, folder / "runs" / "demo",
        f"--data.sources.functions.path={data / 'functions.jsonl'}",
        f"--data.sources.specs.path={data / 'specs.jsonl'}",
    )  # fmt: skip
    losses = _trained(settings, report, "loss")
    questions = _held_out(folder)
    before = answer_bits(load(folder / "runs" / "demo"), questions)
    after = answer_bits(load(folder / "post" / "demo-sft"), questions)
    line = f"loss {losses[0][1]:.2f} → {losses[-1][1]:.2f}, held-out functions {before:.3f} → {after:.3f} bits per byte"
    return {"curve": losses, "bits_before": before, "bits_after": after, "line": line}


def dpo(config: PostConfig, folder: Path, report: Report) -> dict[str, Any]:
    """post/demo-sft → post/demo-dpo: of a real function and what the model wrote instead, the real one is preferred."""
    from mify.loading import load

    data, pairs = folder / "post" / "data", folder / "post" / "pairs"
    lines = [json.loads(line) for line in text_lines(data / "functions.jsonl")]
    if not (pairs / "pairs.jsonl").exists():
        report("writing answers", 0, 1)
        model = load(folder / "post" / "demo-sft")
        pairs.mkdir(parents=True, exist_ok=True)
        made = _with_own_answers(model, lines[: config.pairs], config.seed)
        _write_lines(made, pairs / "pairs.jsonl")
    settings = _recipe(
        "demo-dpo", config.dpo_steps, config.seed, folder, folder / "post" / "demo-sft",
        f"--data.sources.pairs.path={pairs}",
    )  # fmt: skip
    margins = _trained(settings, report, "margin")
    accuracies = _curve(settings.run_folder, "accuracy")
    line = f"margin {margins[0][1]:.2f} → {margins[-1][1]:.2f}, accuracy {accuracies[-1][1]:.0%}"
    return {"curve": margins, "accuracy": accuracies, "line": line}


def grpo(config: PostConfig, folder: Path, report: Report) -> dict[str, Any]:
    """post/demo-sft → post/demo-grpo: answers earn the share of hidden tests that they pass, in the sandbox."""
    from mify.eval.sandbox import sandbox_kind
    from mify.loading import load
    from mify.post.verifiable import Judge, read_tasks
    from mify.training.objectives.grpo import solve

    kind = sandbox_kind()
    if not kind.confined:
        (folder / "post" / "demo-grpo").mkdir(parents=True, exist_ok=True)
        return {"skipped": f"nothing here can confine programs: {kind.reason}", "line": "not run: no sandbox"}
    data = folder / "post" / "data"
    settings = _recipe(
        "demo-grpo", config.grpo_steps, config.seed, folder, folder / "post" / "demo-sft",
        f"--data.sources.tasks.path={data / 'tasks.jsonl'}",
    )  # fmt: skip
    rewards = _trained(settings, report, "reward")
    tasks = read_tasks(data / "held_out_tasks.jsonl")
    solved: dict[str, list[float]] = {}
    with Judge() as judge:
        for name, run in (("before", folder / "post" / "demo-sft"), ("after", settings.run_folder)):
            model = load(run)
            solved[name] = solve(
                model, model.require_tokenizer(), tasks, judge, samples=2, temperature=1.0,
                max_new_tokens=settings.grpo.max_new_tokens, seed=config.seed,
            ).tolist()  # fmt: skip
            if name == "after":
                example = _example(model, folder)
    shares = {name: sum(values) / len(values) for name, values in solved.items()}
    line = f"held-out specs solved {shares['before']:.0%} → {shares['after']:.0%}"
    return {
        "curve": rewards,
        "solved": shares,
        "solved_curve": _curve(settings.run_folder, "solved"),
        "tasks": len(tasks),
        "example": example,
        "line": line,
    }


# ---- what the stages share


def answer_bits(model: Model, lines: Sequence[dict[str, Any]]) -> float:
    """Bits per UTF-8 byte of the assistant's answers, given their questions."""
    import math

    import torch

    from mify.data.segments import Segment, pack_segments
    from mify.post.prompts import answer_ids, prompt_ids

    tokenizer = model.require_tokenizer()
    nats, num_bytes = 0.0, 0
    for line in lines:
        question, answer = line["messages"]
        ids = prompt_ids([question], tokenizer), answer_ids([question], answer["content"], tokenizer)
        segment = Segment.answer(*ids)
        if len(segment) > model.config.context:
            continue
        batch = pack_segments([[segment]], context=len(segment), pad_id=0, max_segments=1)
        with torch.no_grad():
            nats += float(model.loss(batch)[0])
        num_bytes += len(answer["content"].encode())
    return nats / math.log(2) / max(1, num_bytes)


def _with_own_answers(model: Model, lines: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Pairs: the real answer is chosen, the model's own sample rejected, where the two differ."""
    from mify.post.prompts import end_id, prompt_ids
    from mify.training.rollouts import sample_answers

    tokenizer = model.require_tokenizer()
    questions = [[line["messages"][0]] for line in lines]
    answers = sample_answers(
        model, [prompt_ids(question, tokenizer) for question in questions], end=end_id(questions[0], tokenizer),
        max_new_tokens=96, temperature=1.0, seed=seed,
    )  # fmt: skip
    pairs = []
    for line, question, (tokens, finished, _) in zip(lines, questions, answers, strict=True):
        own = tokenizer.decode(tokens[:-1] if finished else tokens)
        if own.strip() and own != line["messages"][1]["content"]:
            pairs.append({"prompt": question, "chosen": line["messages"][1]["content"], "rejected": own})
    return pairs


def _example(model: Model, folder: Path) -> dict[str, str]:
    """A held-out spec and what the model writes for it, greedily."""
    from mify.post.prompts import end_id, prompt_ids
    from mify.post.verifiable import read_tasks
    from mify.training.rollouts import sample_answers

    task = read_tasks(folder / "post" / "data" / "held_out_tasks.jsonl")[0]
    tokenizer = model.require_tokenizer()
    ((tokens, finished, _),) = sample_answers(
        model, [prompt_ids(task.prompt, tokenizer)], end=end_id(task.prompt, tokenizer), max_new_tokens=64,
        temperature=0.0, seed=0,
    )  # fmt: skip
    assert not isinstance(task.prompt, str)
    return {"question": task.prompt[0]["content"], "answer": tokenizer.decode(tokens[:-1] if finished else tokens)}


def _recipe(recipe: str, steps: int | None, seed: int, folder: Path, start: Path, *more: str) -> TrainConfig:
    from mify.training.config import load_recipe

    overrides = [
        f"--folder={folder / 'post'}", f"--seed={seed}", f"--init.weights={start}",
        f"--data.tokenizer={folder / 'tokenizer'}", *more,
    ]  # fmt: skip
    if steps is not None:
        overrides += [f"--steps={steps}", "--schedule.warmup_steps=0"]
    return load_recipe(recipe, overrides)


def _trained(settings: TrainConfig, report: Report, name: str) -> list[tuple[int, float]]:
    """Trains, from wherever it stands, and returns the curve of `name`."""
    from mify.training.display import status_line
    from mify.training.trainer import train

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record:
            report(status_line(step, steps, record).split("  ", 1)[1], step, steps)

    report("preparing", 0, settings.steps)
    train(settings, progress)
    return _curve(settings.run_folder, name)


def _curve(run: Path, name: str) -> list[tuple[int, float]]:
    from mify.training.metrics import read_metrics

    records = read_metrics(run / "metrics.jsonl")
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def _held_out(folder: Path) -> list[dict[str, Any]]:
    path = folder / "post" / "data" / "held_out_functions.jsonl"
    return [json.loads(line) for line in text_lines(path)]


def _chosen(found: list[Any], count: int) -> list[Any]:
    """`count` of what was found, spread evenly over it."""
    if len(found) <= count:
        return found
    return [found[index * len(found) // count] for index in range(count)]


def _write_lines(lines: Sequence[dict[str, Any]], path: Path) -> None:
    with atomic_file(path) as temporary:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
