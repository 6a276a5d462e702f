"""The study of reinforcement learning with verifiable rewards: does GRPO lift the pass rate on held-out specs, and do
the rewards do it?

Per seed, on the family of `mify.post.task_family`: mify-tiny is fine-tuned on a few hundred specs with their answers
(`warm`), and from there, with equally many updates,

    grpo      learns from the hidden tests of other specs, whose answers it never sees
    shuffled  the same, the rewards dealt out at random: what updates alone do
    sft       goes on with the answers that it has

All are measured on the same held-out specs, greedily and by samples; differences to `warm` are paired by spec, with a
bootstrap interval over specs and seeds. Finished arms are kept and not trained again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mify.errors import MifyError
from mify.files import read_json, write_json
from mify.post.task_family import draw_specs, write_conversations, write_tasks
from mify.post.verifiable import Judge, read_tasks
from mify.tokenizer import train_tokenizer

from .ablate import resampled
from .config import TrainConfig, load_recipe

ARMS = ("grpo", "shuffled", "sft")
FORMAT, VERSION = "mify-grpo-study", 1
WARM_SPECS, TASKS, LENGTHS = 600, 2000, (2,)
VOCABULARY = 448
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """An arm's share of solved held-out specs, and its difference to the warm start's with a 95% interval.

    Args:
        how: "greedy", or "sampled" at temperature 1.
        by_seed: the differences. cpu_seconds: of training, a mean over seeds.
    """

    arm: str
    how: str
    solved: float
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    cpu_seconds: float


def run_grpo_study(
    out: Path,
    *,
    seeds: Sequence[int],
    arms: Sequence[str] = ARMS,
    held_out: int = 150,
    samples: int = 2,
    warm_steps: int | None = None,
    overrides: Sequence[str] = (),
    say: Say,
) -> list[Row]:
    """Trains and measures every arm with every seed; writes out/grpo.json.

    Args:
        held_out: specs that are measured. samples: answers to each at temperature 1.
        warm_steps: of the warm start; the recipe's by default. overrides: of `grpo-tiny`.

    Raises:
        MifyError: an unknown arm, no seed, what training raises.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not seeds:
        raise MifyError(f"no seed, or unknown arms: {', '.join(unknown)}", f"the arms are {', '.join(ARMS)}")
    measured: dict[tuple[str, str], list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in seeds:
        data = _data(out / f"seed-{seed}", seed, held_out)
        warm = _warm_config(data, seed, warm_steps)
        configs = {"warm": warm, **{arm: _arm_config(arm, data, seed, warm, overrides) for arm in arms}}
        for arm, config in configs.items():
            found = _measured(config, data, samples, seed, say)
            seconds.setdefault(arm, []).append(found["cpu_seconds"])
            for how in ("greedy", "sampled"):
                measured.setdefault((arm, how), []).append(found[how])
    rows = [_row(arm, how, measured, seconds[arm]) for arm in ("warm", *arms) for how in ("greedy", "sampled")]
    write_json(
        out / "grpo.json",
        {
            "format": FORMAT, "version": VERSION, "seeds": list(seeds), "held_out": held_out, "samples": samples,
            "rows": [{name: getattr(row, name) for name in Row.__slots__} for row in rows],
            "conclusion": conclusion(rows, len(seeds)),
        },
    )  # fmt: skip
    return rows


def _data(folder: Path, seed: int, held_out: int) -> Path:
    """sft.jsonl, tasks.jsonl, held_out.jsonl and the tokenizer, made once.

    Raises:
        MifyError: those that are there were made for another number of held-out specs.
    """
    if (folder / "tokenizer").is_dir():
        there = len(read_tasks(folder / "held_out.jsonl"))
        if there != held_out:
            raise MifyError(f"{folder} holds {there} held-out specs, not {held_out}", "give the study another folder")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    answered = draw_specs(WARM_SPECS, seed=seed, held_out=False, lengths=LENGTHS)
    known = {spec.task.id for spec in answered}
    drawn = draw_specs(TASKS + WARM_SPECS, seed=seed + 10_000, held_out=False, lengths=LENGTHS)
    write_conversations(answered, folder / "sft.jsonl")
    write_tasks([spec for spec in drawn if spec.task.id not in known][:TASKS], folder / "tasks.jsonl")
    write_tasks(draw_specs(held_out, seed=seed, held_out=True, lengths=LENGTHS), folder / "held_out.jsonl")
    texts = (f"{spec.task.prompt[0]['content']}\n{spec.answer}" for spec in answered)  # type: ignore[index]
    train_tokenizer(texts, VOCABULARY).save(folder / "tokenizer")
    return folder


def _warm_config(data: Path, seed: int, steps: int | None) -> TrainConfig:
    return load_recipe(
        "sft-tiny",
        [
            f"--folder={data}", "--name=warm", f"--seed={seed}", f"--data.sources.specs.path={data / 'sft.jsonl'}",
            "--data.sources.specs.weight=1", f"--data.tokenizer={data / 'tokenizer'}",
            f"--model.vocab_size={VOCABULARY}", *([f"--steps={steps}"] if steps is not None else []),
        ],
    )  # fmt: skip


def _arm_config(arm: str, data: Path, seed: int, warm: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    common = [
        f"--folder={data}", f"--name={arm}", f"--seed={seed}", f"--init.weights={warm.run_folder}",
        f"--data.tokenizer={data / 'tokenizer'}", "--data.sources.specs.weight=1",
    ]  # fmt: skip
    grpo = load_recipe("grpo-tiny", [*common, f"--data.sources.specs.path={data / 'tasks.jsonl'}", *overrides])
    if arm == "grpo":
        return grpo
    if arm == "shuffled":
        return load_recipe(
            "grpo-tiny",
            [*common, f"--data.sources.specs.path={data / 'tasks.jsonl'}", *overrides, "--grpo.shuffle_rewards=true"],
        )
    return load_recipe(
        "sft-tiny",
        [
            *common, f"--data.sources.specs.path={data / 'sft.jsonl'}", f"--steps={grpo.steps}",
            f"--optimizer.learning_rate={grpo.optimizer.learning_rate}", "--schedule.kind=constant",
            "--schedule.warmup_steps=0",
        ],
    )  # fmt: skip


def _measured(config: TrainConfig, data: Path, samples: int, seed: int, say: Say) -> dict[str, Any]:
    """Trains one arm and solves the held-out specs with it; both are kept in the run's folder and done once."""
    from mify.loading import load

    from .objectives.grpo import solve
    from .trainer import train

    stored = config.run_folder / "solved.json"
    name = f"{data.name} {config.name}"
    # The start is told by its steps: another warm start makes other arms.
    start = read_json(data / "warm" / "solved.json")["identity"]["hash"] if config.name != "warm" else ""
    identity = {"hash": config.hash, "steps": config.steps, "samples": samples, "start": start}
    if stored.is_file() and (known := read_json(stored)).get("identity") == identity:
        return known["found"]

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record and step % max(1, steps // 8) == 0:
            solved = f", solved {record['solved']:.1%} of its samples" if "solved" in record else ""
            say(f"{name}: step {step}/{steps}, loss {record['loss']:.3f}{solved}")

    before = time.process_time()
    result = train(config, progress)
    seconds = time.process_time() - before
    model = load(result.checkpoint)
    tasks = read_tasks(data / "held_out.jsonl")
    found: dict[str, Any] = {"cpu_seconds": seconds}
    with Judge() as judge:
        for how, temperature, count in (("greedy", 0.0, 1), ("sampled", 1.0, samples)):
            found[how] = solve(
                model, model.require_tokenizer(), tasks, judge, samples=count, temperature=temperature,
                max_new_tokens=64, seed=seed,
            ).tolist()  # fmt: skip
    greedy, sampled = float(np.mean(found["greedy"])), float(np.mean(found["sampled"]))
    say(f"{name}: held-out specs solved, greedily {greedy:.1%}, sampled {sampled:.1%}")
    write_json(
        stored,
        {"format": "mify-grpo-arm", "version": 2, "identity": identity, "found": found},
    )
    return found


def _row(arm: str, how: str, measured: dict[tuple[str, str], list[list[float]]], seconds: list[float]) -> Row:
    solved, base = np.array(measured[arm, how]), np.array(measured["warm", how])  # (seeds, specs)
    delta = solved - base
    low, high = np.quantile(resampled(delta, np.ones(delta.shape[1]), 0), [0.025, 0.975])
    by_seed = tuple(float(value) for value in delta.mean(1))
    return Row(
        arm, how, float(solved.mean()), float(delta.mean()), float(low), float(high), by_seed, float(np.mean(seconds))
    )


def conclusion(rows: Sequence[Row], seeds: int) -> str:
    """What may be said, in words: a rise needs an interval above zero and every seed to agree."""
    lines = [f"Held-out specs, {seeds} seed(s), against the warm start:"]
    for row in rows:
        if row.arm == "warm":
            lines.append(f"warm, {row.how}: {row.solved:.1%} solved.")
            continue
        up = row.low > 0 and min(row.by_seed) > 0
        down = row.high < 0 and max(row.by_seed) < 0
        verdict = "better" if up else "worse" if down else "not told apart"
        interval = f"[{row.low:+.1%}, {row.high:+.1%}]"
        lines.append(f"{row.arm}, {row.how}: {row.solved:.1%}, {row.difference:+.1%} {interval}, {verdict}.")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Differences to the warm start with their intervals, as PNG."""
    from .charts import forest

    panels = {
        how: [
            (row.arm, 100 * row.difference, 100 * row.low, 100 * row.high)
            for row in rows
            if row.how == how and row.arm != "warm"
        ]
        for how in ("greedy", "sampled")
    }
    forest(panels, "held-out specs solved, percentage points against the warm start", path)
