"""Judging answers to verifiable tasks: shares of hidden tests, and nothing for what only looks like a solution."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.eval.sandbox import sandbox_kind
from mify.post.rewards import Answered, reward_functions, score
from mify.post.task_family import draw_specs
from mify.post.verifiable import CodeTask, Judge, Judged, counting_tests, looks_up, read_tasks

TASK = CodeTask(
    "double",
    "def f(x):\n",
    "f",
    ("assert f(4) == 8", "assert f(-3) == -6", "assert f(0) == 0", "assert f(50) == 100"),
    (("f(2)", "4"), ("f(7)", "14"), ("f('ab')", "'abab'")),
)

# Answers that earn nothing, and the status under which they are counted: a wrong program in another dress each.
HACKS = {
    "exits": ("    import sys\n    sys.exit(0)\n", "suspect"),
    "exits at once": ("    return 0\nraise SystemExit(0)\n", "failed"),
    "os._exit": ("    return 0\nimport os\nos._exit(0)\n", "suspect"),
    "equal to everything": ("    return A()\nclass A:\n    def __eq__(self, other): return True\n", "suspect"),
    "patches a builtin": ("    return 0\nimport builtins\nbuiltins.AssertionError = ValueError\n", "suspect"),
    "defines abs": ("    return 0\ndef abs(x): return 0\nAssertionError = ValueError\n", "suspect"),
    "reads the tests": ("    return 0\nimport sys\nt = sys._getframe(1).f_locals\n", "suspect"),
    "looks through gc": ("    import gc\n    return gc.get_objects()\n", "suspect"),
    "reads the source": ("    return open(__file__).read()\n", "suspect"),
    "eval of a text": ("    return eval('x + x')\n", "suspect"),
    "claims a count": ("    return 0\nraise AssertionError('4')\n", "failed"),
    "the examples by if": (
        "    if x == 2:\n        return 4\n    if x == 7:\n        return 14\n    return 0\n",
        "hard-coded",
    ),
    "the examples by dict": ("    return {2: 4, 7: 14}.get(x, 0)\n", "hard-coded"),
    "the examples by match": (
        "    match x:\n        case 2:\n            return 4\n        case 7:\n            return 14\n    return 0\n",
        "hard-coded",
    ),
    "the examples inline": ("    return 4 if x == 2 else 14 if x == 7 else 0\n", "hard-coded"),
    "loops for ever": ("    while True:\n        pass\n", "failed"),
    "recursion": ("    return f(x)\n", "failed"),
    "no Python": ("    return (\n", "no program"),
    "another name": ("    pass\ndel f\n", "failed"),
}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    with Judge(1) as made:
        yield made


def test_an_honest_answer_earns_what_it_computes(judge: Judge) -> None:
    answers = [
        "    return x * 2\n",
        "    return x + x\n",
        "    return abs(x) * 2\n",
        "    return x\n",
        "    return x / 0\n",
    ]
    found = judge.judge([(TASK, answer) for answer in answers])
    assert [one.fraction for one in found] == [1.0, 1.0, 0.75, 0.25, 0.0]
    assert [one.solved for one in found] == [True, True, False, False, False]
    # Constants that a formula needs are no table of examples.
    honest = "    if x == 2:\n        return x + 2\n    return 2 * x\n"
    assert judge.judge([(TASK, honest)])[0].solved


def test_no_hack_earns_anything_and_each_is_named(judge: Judge) -> None:
    found = judge.judge([(TASK, answer) for answer, _ in HACKS.values()])
    statuses = {name: one.status for name, one in zip(HACKS, found, strict=True)}
    # A loop is ended by its CPU seconds, in the solution's process: the tests then fail.
    assert statuses == {name: status for name, (_, status) in HACKS.items()}
    earned = {name: one.fraction for name, one in zip(HACKS, found, strict=True)}
    wrong = judge.judge([(TASK, "    return None\n")])[0].fraction
    assert wrong == 0
    # One test asks for f(0) == 0, which a constant 0 gives honestly.
    assert max(earned.values()) <= 0.25
    assert all(earned[name] == 0 for name, (_, status) in HACKS.items() if status in ("suspect", "hard-coded"))


def test_a_worker_lives_through_calls_from_one_pool(judge: Judge) -> None:
    """Threads that start a sandbox must outlive the call, or the sandbox ends with them."""
    tasks = [CodeTask(str(n), "def f(x):\n", "f", (f"assert f({n}) == {n + 1}",)) for n in range(6)]
    for start in (0, 3):
        found = judge.judge([(task, "    return x + 1\n") for task in tasks[start : start + 3]])
        assert all(one.solved for one in found)
    assert sum(worker.starts for worker in judge._pool._workers) == 1


def test_strings_of_several_lines_stay_as_the_test_has_them(judge: Judge) -> None:
    test = 'assert f("""a\n  b""") == """a\n  b\na\n  b"""'
    task = CodeTask("lines", "def f(x):\n", "f", (test, "# nothing to run", 'assert f("c") == "c"'))
    assert judge.judge([(task, "    return x + '\\n' + x\n")])[0].fraction == pytest.approx(2 / 3)


def test_tasks_of_two_files_may_bear_one_id(judge: Judge) -> None:
    """Training and held-out tasks are numbered apart, and one judge sees both."""
    question = [{"role": "user", "content": "f"}]
    program = "```python\ndef f(x):\n    return x + 1\n```"
    tasks = [CodeTask("0", question, "f", (f"assert f(1) == {n}",)) for n in (2, 3)]
    assert [judge.judge([(task, program)])[0].solved for task in tasks] == [True, False]


def test_equal_programs_are_judged_once(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(TASK, "    return x * 2\n")] * 5 + [(TASK, "    return x * 3\n")]
    ran: list[int] = []
    run = judge._pool.run
    monkeypatch.setattr(judge._pool, "run", lambda programs: (ran.append(len(programs)), run(programs))[1])
    judge._known.clear()
    first = judge.judge(answers)
    assert first == judge.judge(answers)
    assert ran == [2, 0]


def test_a_chat_answer_is_its_code_block(judge: Judge) -> None:
    task = CodeTask("chat", [{"role": "user", "content": "f doubles"}], "f", TASK.tests)
    answer = "Like this:\n```python\ndef f(x):\n    return 2 * x\n```\nDone."
    assert judge.judge([(task, answer)])[0].solved


def test_counting_tests_tell_how_many_passed() -> None:
    namespace = {"f": lambda x: x}
    with pytest.raises(AssertionError, match="^n0nce 2$"):
        exec(counting_tests(["assert f(1) == 1", "assert f(1) == 2", "assert f(3) == 3"], "n0nce"), namespace)
    exec(counting_tests(["assert f(1) == 1", "y = 3\nassert f(y) == 3"], "n0nce"), namespace)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(x):\n    return 4 if x == 2 else x * 2", False),  # one of several: may well be a case of its own
        ("def f(x):\n    if x in (2, 7):\n        return {2: 4, 7: 14}[x]", True),
        ("def f(x):\n    if x > 2:\n        return 14\n    return 4", False),
        ("def f(x):\n    return 4 + 14 + 2 + 7", False),
    ],
)
def test_looking_up(program: str, expected: bool) -> None:
    assert looks_up(ast.parse(program), TASK.examples) is expected


# ---- rewards


def answered(fraction: float = 0.5, tokens: int = 10, finished: bool = True, status: str = "failed") -> Answered:
    return Answered(TASK, "…", tokens, finished, Judged(status, fraction), 20, 40)


def raises_on_long(answer: Answered) -> float:
    if answer.tokens > 15:
        raise LookupError("no such thing")
    return 1.0


def gives_nan(answer: Answered) -> float:
    return math.nan


def test_parts_are_weighted_and_added() -> None:
    weights = {"tests": 1.0, "solved": 2.0, "format": 0.5, "length": 0.1}
    functions = reward_functions(weights)
    answers = [
        answered(),
        answered(1.0, 40, status="passed"),
        answered(0.0, 30, False),
        answered(0, 5, status="no program"),
    ]
    scores = score(answers, functions, weights, stop=True)
    assert scores.parts["length"] == [0, -1, -0.5, 0]
    assert scores.parts["format"] == [1, 1, 0, 0]
    assert scores.rewards == pytest.approx([1.0, 1 + 2 + 0.5 - 0.1, -0.05, 0.0])
    assert not scores.errors


def test_a_reward_that_raises_is_counted_and_named_or_stops() -> None:
    weights = {"tests": 1.0, f"{__name__}:raises_on_long": 1.0, f"{__name__}:gives_nan": 0.0}
    functions = reward_functions({name: weight for name, weight in weights.items() if "nan" not in name})
    scores = score([answered(), answered(tokens=16)], functions, weights, stop=False)
    assert scores.rewards[0] == 1.5
    assert math.isnan(scores.rewards[1])
    assert dict(scores.errors) == {f"{__name__}:raises_on_long: LookupError": 1}
    with pytest.raises(MifyError, match="raised LookupError on an answer to double: no such thing"):
        score([answered(tokens=16)], functions, weights, stop=True)
    counted = score([answered()], reward_functions(weights), weights, stop=False)
    assert dict(counted.errors) == {f"{__name__}:gives_nan: ValueError": 1}


@pytest.mark.parametrize("name", ["test", "no_such_module:x", "math:no_such_function"])
def test_an_unknown_reward_is_refused(name: str) -> None:
    with pytest.raises(MifyError, match=f"there is no reward '{name}'"):
        reward_functions({name: 1.0})


# ---- data


def test_tasks_come_back_as_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(TASK.to_dict()) + "\n\n", encoding="utf-8")
    (read,) = read_tasks(tmp_path)
    assert read.to_dict() == TASK.to_dict()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[]", "is no task"),
        ('{"id": "a", "prompt": "x", "entry_point": "f"}', "it lacks 'tests'"),
        ('{"id": "a", "prompt": "x", "entry_point": "f", "tests": []}', "it has no tests"),
        ('{"id": "a", "prompt": "x", "entry_point": "f", "tests": ["assert ("]}', "a test is no Python"),
        ('{"id": 3, "prompt": "x", "entry_point": "f", "tests": ["1"]}', "is no text"),
        ('{"id": "a", "prompt": [], "entry_point": "f", "tests": ["1"]}', "neither a text nor a list"),
    ],
)
def test_a_bad_task_is_named(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(MifyError, match=r"bad\.jsonl, line 1, is no task") as caught:
        read_tasks(tmp_path)
    assert problem in caught.value.problem


def test_an_id_comes_once(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text(f"{json.dumps(TASK.to_dict())}\n" * 2, encoding="utf-8")
    with pytest.raises(MifyError, match="line 2, is no task: the id 'double' stands in an earlier line"):
        read_tasks(tmp_path)


def test_the_family_is_split_by_words_and_its_references_pass(judge: Judge) -> None:
    seen = draw_specs(120, seed=3, held_out=False)
    held_out = draw_specs(40, seed=3, held_out=True, examples=True)
    assert not {spec.task.id for spec in seen} & {spec.task.id for spec in held_out}
    assert len({spec.task.id for spec in seen}) == 120
    assert all(spec.held_out for spec in held_out)
    assert [s.task.id for s in draw_specs(120, seed=3, held_out=False)] == [s.task.id for s in seen]
    found = judge.judge([(spec.task, spec.answer) for spec in (*seen[:20], *held_out[:20])])
    assert all(one.solved for one in found), found
    constant = judge.judge([(spec.task, "def f(x):\n    return 0") for spec in seen])
    assert max(one.fraction for one in constant) < 1
    for spec in held_out:
        text = spec.task.prompt[0]["content"]  # type: ignore[index]
        assert all(call in text for call, _ in spec.task.examples)
        assert not any(test.split(" == ")[0].removeprefix("assert ") in text for test in spec.task.tests)


def test_a_family_has_an_end() -> None:
    with pytest.raises(MifyError, match="has no 150 such specs"):
        draw_specs(150, seed=0, held_out=True, lengths=(1,))
