"""Runs a task: asks the model, judges the answers, scores them. Every prompt, completion and verdict is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import Completer, Prompt, Sampling
from mify.eval.records import Journal
from mify.eval.sandbox import Form, Program, Verdict, run_programs, sandbox_kind
from mify.eval.statistics import bootstrap_interval, pass_at_k
from mify.eval.tasks import Item, Judgement, Task
from mify.files import write_json

Progress = Callable[[str, int, int], None]
"""progress(label, done, total)"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run tasks.

    Args:
        samples: completions per item; more than one needs a temperature.
        k: the k of pass@k to report.
        limit: only the first so many items (said in the result).
        form: how programs meet their tests, see `mify.eval.sandbox`.
        chat: ask in the model's chat format, where the task has one.
        fim_order: "psm" or "spm": whether the prefix or the suffix comes first in an infilling prompt.
    """

    samples: int = 1
    k: tuple[int, ...] = (1,)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    limit: int | None = None
    workers: int | None = None
    allow_unconfined: bool = False
    form: Form = "auto"
    chat: bool = False
    fim_order: str = "psm"


def run_task(
    task: Task,
    completer: Completer,
    out: str | os.PathLike[str],
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Asks the model, judges the answers, and returns what belongs in a report.

    Writes out/NAME.completions.jsonl, out/NAME.verdicts.jsonl and out/NAME.json; what is there already is not done
    again.

    Raises:
        MifyError: the task infills and the model cannot, sampling options that do not fit, or nothing confines
        programs.
    """
    options = options or RunOptions()
    if options.samples > 1 and options.temperature == 0:
        raise MifyError(
            f"{options.samples} samples at temperature 0 would all be equal", "give --temperature, e.g. 0.8"
        )
    if max(options.k) > options.samples:
        raise MifyError(f"pass@{max(options.k)} needs at least that many samples", f"give --samples {max(options.k)}")
    if task.infills and not completer.can_infill:
        raise MifyError(
            f"{task.name} asks to infill, and the vocabulary of {completer.name} has no FIM tokens",
            "leave the task out, or use a model trained with fill-in-the-middle",
        )
    if options.fim_order not in completer.fim_orders and task.infills:
        raise MifyError(
            f"{completer.name} cannot be asked in {options.fim_order.upper()} order",
            f"use --fim-order {completer.fim_orders[0]}",
        )
    if options.chat and (task.chat is None or not completer.can_chat):
        who = f"{task.name} has no chat form" if task.chat is None else f"{completer.name} has no chat template"
        raise MifyError(who, "leave --chat out")
    out = Path(out)
    items = list(task.items if options.limit is None else task.items[: options.limit])
    if not items:
        raise MifyError(f"{task.name} has no items", f"check its data file {task.source.path}")
    sampling = replace(
        task.sampling,
        max_new_tokens=options.max_new_tokens or task.sampling.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        # A chat model ends its turn by itself, and explains before it answers.
        stop=() if options.chat else task.sampling.stop,
        fim_order=options.fim_order if task.infills else "psm",
    )
    settings = {
        "task": task.name,
        "data_sha256": task.source.sha256,
        "model": completer.identity,
        "sampling": asdict(sampling),
        "samples": options.samples,
        "items": len(items),
        "chat": options.chat,
    }
    completions = _complete(task, items, completer, sampling, options, out, settings, progress)
    verdicts, judged_by = _judge(task, items, completions, options, out, settings, progress)
    result = _summary(task, items, completions, verdicts, options, sampling, completer, judged_by)
    write_json(out / f"{task.name}.json", result)
    return result


def _complete(
    task: Task,
    items: Sequence[Item],
    completer: Completer,
    sampling: Sampling,
    options: RunOptions,
    out: Path,
    settings: dict[str, Any],
    progress: Progress | None,
) -> dict[tuple[str, int], dict[str, Any]]:
    prompts = []
    for item in items:
        text, suffix = task.prompt(item)
        if options.chat:
            assert task.chat is not None
            text, suffix = task.chat(item), None
        system = task.system(item) if options.chat and task.system is not None else None
        parts = task.parts(item) if not options.chat and task.parts is not None else ()
        prompts += [
            Prompt((item.id, sample), text, suffix, options.chat, system, parts) for sample in range(options.samples)
        ]
    with Journal(out / f"{task.name}.completions.jsonl", "completions", settings, ("id", "sample")) as journal:

        def keep(prompt: Prompt, text: str | None, facts: dict[str, Any]) -> None:
            identity, sample = prompt.key
            journal.add(
                {
                    "id": identity,
                    "sample": sample,
                    "prompt": prompt.text,
                    "suffix": prompt.suffix,
                    **({} if prompt.system is None else {"system": prompt.system}),
                    **({"parts": prompt.parts} if prompt.parts else {}),
                    "completion": text,
                    **facts,
                }
            )
            if progress is not None:
                progress(f"{task.name}: completing", len(journal.records), len(prompts))

        # What an endpoint could not answer is asked again when the run is continued.
        done = frozenset(
            (key[0], key[1]) for key, record in journal.records.items() if record["completion"] is not None
        )
        if len(done) < len(prompts):
            completer.complete(prompts, sampling, done, keep)
            journal.finish()
        return {(key[0], key[1]): record for key, record in journal.records.items()}


def _judge(
    task: Task,
    items: Sequence[Item],
    completions: dict[tuple[str, int], dict[str, Any]],
    options: RunOptions,
    out: Path,
    settings: dict[str, Any],
    progress: Progress | None,
) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, Any]]:
    by_id = {item.id: item for item in items}
    judged_by: dict[str, Any] = {"how": task.judged_by}
    kind = None
    if task.program is not None:
        kind = sandbox_kind()
        judged_by = {
            "how": "executed",
            "sandbox": kind.name,
            "isolation": kind.isolation,
            "form": options.form,
            "limits": asdict(task.limits),
        }
    with Journal(out / f"{task.name}.verdicts.jsonl", "verdicts", settings, ("id", "sample")) as journal:
        programs: list[Program] = []
        waiting: list[tuple[tuple[str, int], Item, str]] = []
        keys: dict[str, tuple[str, int]] = {}
        for key, record in sorted(completions.items()):
            if journal.records.get(key, {"status": "no answer"})["status"] != "no answer":
                continue
            if record["completion"] is None:
                journal.add({"id": key[0], "sample": key[1], "status": "no answer", "detail": record.get("error", "")})
                continue
            item = by_id[key[0]]
            answer = ((options.chat and task.chat_answer) or task.answer)(item, record["completion"])
            if task.program is None:
                waiting.append((key, item, answer))
            else:
                name = f"{key[0]}#{key[1]}"
                keys[name] = key
                programs.append(replace(task.program(item, answer), id=name))

        for (key, _, answer), judgement in zip(waiting, _judged(task, waiting), strict=True):
            status = "undecided" if judgement.passed is None else "passed" if judgement.passed else "failed"
            figures = {"figures": judgement.figures} if judgement.figures else {}
            journal.add(
                {"id": key[0], "sample": key[1], "status": status, "detail": judgement.detail, "answer": answer}
                | figures
            )

        def keep(verdict: Verdict) -> None:
            identity, sample = keys[verdict.id]
            journal.add(
                {
                    "id": identity,
                    "sample": sample,
                    "status": verdict.status,
                    "detail": without_addresses(verdict.detail),
                }
            )
            if progress is not None:
                progress(f"{task.name}: executing", len(journal.records), len(completions))

        if programs:
            run_programs(
                programs,
                workers=options.workers,
                limits=task.limits,
                form=options.form,
                kind=kind,
                packages=task.packages,
                allow_unconfined=options.allow_unconfined,
                on_verdict=keep,
            )
        journal.finish()
        return {(key[0], key[1]): record for key, record in journal.records.items()}, judged_by


def _judged(task: Task, answers: Sequence[tuple[tuple[str, int], Item, str]]) -> list[Judgement]:
    pairs = [(item, answer) for _, item, answer in answers]
    if task.judge is not None:
        return task.judge(pairs) if pairs else []
    exact = task.exact
    return [] if exact is None else [Judgement(exact(item, answer)) for item, answer in pairs]


def _summary(
    task: Task,
    items: Sequence[Item],
    completions: dict[tuple[str, int], dict[str, Any]],
    verdicts: dict[tuple[str, int], dict[str, Any]],
    options: RunOptions,
    sampling: Sampling,
    completer: Completer,
    judged_by: dict[str, Any],
) -> dict[str, Any]:
    passed = {item.id: 0 for item in items}
    statuses: dict[str, int] = {}
    for (identity, _), record in verdicts.items():
        passed[identity] += record["status"] == "passed"
        statuses[record["status"]] = statuses.get(record["status"], 0) + 1
    scores: dict[str, Any] = {}
    for k in options.k:
        values = [pass_at_k(options.samples, count, k) for count in passed.values()]
        low, high = bootstrap_interval(values, seed=options.seed)
        name = task.metric if task.metric is not None and k == 1 else f"pass@{k}"
        scores[name] = {"value": sum(values) / len(values), "low": low, "high": high}
    first = next(iter(scores))
    scores |= _figures(items, verdicts, options)
    cut = sum(1 for record in completions.values() if record.get("prompt_cut"))
    return {
        "version": 1,
        "task": task.name,
        "model": completer.identity,
        "data": asdict(task.source),
        "items": len(items),
        "of_items": len(task.items),
        "samples": options.samples,
        "metric": first,
        "score": scores[first]["value"],
        "scores": scores,
        "interval": "95%, bootstrap over items, 10,000 resamples; Wilson where all items came out alike",
        "passed": sum(count > 0 for count in passed.values()) if options.samples > 1 else sum(passed.values()),
        "statuses": dict(sorted(statuses.items())),
        "prompts_cut": cut,
        "format": "evaluation",
        "prompt": "chat" if options.chat else "base",
        "sampling": asdict(sampling),
        "judged": judged_by,
    }


def _figures(
    items: Sequence[Item], verdicts: dict[tuple[str, int], dict[str, Any]], options: RunOptions
) -> dict[str, Any]:
    """The further numbers of the answers: the mean over samples, then over items; no answer counts as 0."""
    names = sorted({name for record in verdicts.values() for name in record.get("figures", ())})
    found: dict[str, Any] = {}
    for name in names:
        sums = dict.fromkeys((item.id for item in items), 0.0)
        for (identity, _), record in verdicts.items():
            sums[identity] += record.get("figures", {}).get(name, 0.0)
        values = [total / options.samples for total in sums.values()]
        low, high = bootstrap_interval(values, seed=options.seed)
        found[name] = {"value": sum(values) / len(values), "low": low, "high": high}
    return found


def without_addresses(text: str) -> str:
    """`text` with memory addresses blanked: they differ from run to run."""
    return re.sub(r"0x[0-9a-fA-F]{6,}", "0x…", text)
