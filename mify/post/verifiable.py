"""Tasks whose answers a machine can check: a prompt, hidden tests, and the judging of programs against them.

A line of JSON is {"id", "prompt", "entry_point", "tests": ["assert f(2) == 4", …]}, and optionally

    "examples"   [["f(2)", "4"], …]: calls whose values the prompt shows; answers that only know those are found out
    "setup"      what stands before the tests: imports, helpers

The prompt is a text that the answer continues (the program is both together) or a conversation (the program is the code
block of the answer that defines the entry point). Tests never reach the model.

How a program is judged so that it earns what it computes and nothing else: its tests run in another process (`apart`,
see `mify.eval.inside`), each by itself, so that a share of them can pass; the share is told under a text made anew for
every program. A program that reaches for the interpreter (`mify.eval.suspicion`) earns nothing: honest ones have no use
for that. Nor does one that looks its answers up among the examples it was shown.
"""

from __future__ import annotations

import ast
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.code_blocks import block_that_defines
from mify.eval.sandbox import Limits, Pool, Program, Verdict
from mify.eval.suspicion import names_used, parse, suspicion
from mify.post.preferences import json_lines, json_object
from mify.post.prompts import Prompt, check_prompt

FORM = 'write {"id": "…", "prompt": "…", "entry_point": "f", "tests": ["assert f(2) == 4"]}'
# CPU seconds decide; the clock only ends what sleeps, or a busy machine would bend the reward.
LIMITS = Limits(wall_s=20.0, cpu_s=1.0, memory_bytes=256 << 20)
_COUNT = "_right"


@dataclass(frozen=True, slots=True)
class CodeTask:
    """One task; `line` is what it was read from, which tells it apart."""

    id: str
    prompt: Prompt
    entry_point: str
    tests: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()
    setup: str = ""
    line: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON holds it."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "entry_point": self.entry_point,
            "tests": list(self.tests),
            "examples": [list(example) for example in self.examples],
            "setup": self.setup,
        }

    def program(self, answer: str) -> str:
        """The program that an answer makes."""
        if isinstance(self.prompt, str):
            return self.prompt + answer
        return block_that_defines(answer, self.entry_point)


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of a program.

    Args:
        status: of `mify.eval.programs.Verdict`; "suspect", "hard-coded" where a guard took its reward; "no program"
            where it is no Python that defines the entry point: those are not run.
        fraction: of the tests that passed, 0 to 1, 0 where a guard struck.
        detail: the reason.
    """

    status: str
    fraction: float
    detail: str = ""

    @property
    def solved(self) -> bool:
        return self.fraction == 1.0

    @property
    def guard(self) -> str | None:
        """The guard that struck, by name."""
        return self.status if self.status in ("suspect", "hard-coded", "forged") else None


def read_tasks(path: Path) -> list[CodeTask]:
    """The tasks of a .jsonl file, or of all in a folder, in order.

    Raises:
        MifyError: no such file, a line that is no task, an id that comes twice.
    """
    tasks: list[CodeTask] = []
    seen: set[str] = set()
    for file, number, line in json_lines(path, "tasks"):
        try:
            task = _task(json_object(line), line)
            if task.id in seen:
                raise ValueError(f"the id {task.id!r} stands in an earlier line, too")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise MifyError(f"{file}, line {number}, is no task: {what}", FORM) from None
        seen.add(task.id)
        tasks.append(task)
    return tasks


def _task(value: dict[str, Any], line: bytes) -> CodeTask:
    tests, examples, setup = value["tests"], value.get("examples", []), value.get("setup", "")
    if not isinstance(value["id"], str) or not isinstance(value["entry_point"], str) or not isinstance(setup, str):
        raise ValueError("id, entry_point or setup is no text")
    if not isinstance(tests, list) or not tests:
        raise ValueError("it has no tests")
    for test in (*tests, setup):
        try:
            ast.parse(test)
        except (SyntaxError, TypeError) as error:
            raise ValueError(f"a test is no Python: {error}") from None
    pairs = tuple((str(call), str(result)) for call, result in examples)
    prompt = check_prompt(value["prompt"])
    return CodeTask(value["id"], prompt, value["entry_point"], tuple(tests), pairs, setup, line)


class Judge:
    """Judges programs in warm sandboxes; equal programs for one task once, also over many calls.

    Args:
        workers: sandboxes; as many as there are cores by default.
        kept: verdicts that are remembered at most.

    Raises:
        MifyError: no sandbox works here.
    """

    def __init__(self, workers: int | None = None, *, limits: Limits = LIMITS, kept: int = 100_000) -> None:
        self._pool = Pool(workers, limits=limits, form="apart")
        self._kept = kept
        self._known: dict[_Key, Judged] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def judge(self, answers: Sequence[tuple[CodeTask, str]]) -> list[Judged]:
        """What came of the program of each (task, answer)."""
        keys = [_key(task, task.program(answer)) for task, answer in answers]
        new = {key: task for key, (task, _) in zip(keys, answers, strict=True) if key not in self._known}
        if len(self._known) + len(new) > self._kept:
            self._known = {key: self._known[key] for key in keys if key in self._known}
        programs: dict[_Key, Program] = {}
        nonces: dict[_Key, str] = {}
        for key, task in new.items():
            refused = _refused(task, key[0])
            if refused is not None:
                self._known[key] = refused
                continue
            nonces[key] = secrets.token_hex(8)
            tests = counting_tests(task.tests, nonces[key])
            programs[key] = Program(task.id, key[0], tests, task.setup, (task.entry_point,))
        verdicts = self._pool.run(list(programs.values()))
        for key, verdict in zip(programs, verdicts, strict=True):
            self._known[key] = _judged(verdict, nonces[key], len(new[key].tests))
        return [self._known[key] for key in keys]


_Key = tuple[str, str, str, tuple[str, ...], tuple[tuple[str, str], ...]]


def _key(task: CodeTask, program: str) -> _Key:
    """All that a verdict depends on: tasks of two files may bear one id."""
    return program, task.entry_point, task.setup, task.tests, task.examples


def counting_tests(tests: Iterable[str], nonce: str) -> str:
    """Tests that run each by itself; where not all pass, an AssertionError tells "<nonce> <how many passed>"."""
    body = parse(f"{_COUNT} = 0").body
    count = 0
    for test in tests:
        # As a tree: to indent the text would change what stands in strings of several lines.
        (guarded,) = parse(f"try:\n    {_COUNT} += 1\nexcept Exception:\n    pass").body
        assert isinstance(guarded, ast.Try)
        guarded.body = [*parse(test).body, *guarded.body]
        body.append(guarded)
        count += 1
    body += parse(f"assert {_COUNT} == {count}, '{nonce} ' + str({_COUNT})").body
    return ast.unparse(ast.Module(body, []))


def _judged(verdict: Verdict, nonce: str, count: int) -> Judged:
    if verdict.passed:
        return Judged("passed", 1.0)
    told = f"AssertionError: {nonce} "
    if verdict.status == "failed" and verdict.detail.startswith(told):
        right = int(verdict.detail[len(told) :])
        return Judged("failed", right / count, f"{right} of {count} tests")
    return Judged(verdict.status, 0.0, verdict.detail)


def _refused(task: CodeTask, program: str) -> Judged | None:
    """What needs not be run: no program, or one that a guard strikes."""
    try:
        tree = parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Judged("no program", 0.0, type(error).__name__)
    if not any(isinstance(node, ast.FunctionDef) and node.name == task.entry_point for node in tree.body):
        return Judged("no program", 0.0, f"it does not define {task.entry_point}")
    reason = suspicion(program, names_used("\n".join(task.tests)) - {task.entry_point})
    if reason is not None:
        return Judged("suspect", 0.0, f"it {reason}")
    if looks_up(tree, task.examples):
        return Judged("hard-coded", 0.0, "it compares its arguments with the examples'")
    return None


def looks_up(tree: ast.Module, examples: Sequence[tuple[str, str]]) -> bool:
    """Whether a program decides by the very arguments of examples to give the very results of them.

    A comparison, a `case` or a key of a dictionary holds an example's argument, and the branch or entry below its
    result: for two examples at least, or for the only one. Constants that a formula needs stand in no such pair.
    """
    wanted = Counter((_arguments(call), _constant(result)) for call, result in examples)
    wanted.pop((None, None), None)
    if not wanted:
        return False
    found = set()
    for node in ast.walk(tree):
        for asked, given in _branches(node):
            for arguments, result in wanted:
                if arguments and result is not None and set(arguments) <= asked and result in given:
                    found.add((arguments, result))
    return len(found) >= min(2, len(wanted))


def _branches(node: ast.AST) -> Iterable[tuple[set[str], set[str]]]:
    """(constants that are compared with, constants that are given then)."""
    if isinstance(node, ast.If):
        yield _constants([node.test]), _constants(node.body)
    elif isinstance(node, ast.IfExp):
        yield _constants([node.test]), _constants([node.body])
    elif isinstance(node, ast.Match):
        for case in node.cases:
            yield _constants([case.pattern]), _constants(case.body)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                yield _constants([key]), _constants([value])


def _constants(nodes: Sequence[ast.AST]) -> set[str]:
    texts = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        text = _literal(node)
        if text is not None:
            texts.add(text)
    return texts


def _literal(node: ast.AST) -> str | None:
    """A literal's value as text, so that 4 and (4) are alike, and -4 is one constant."""
    if isinstance(node, (ast.Constant, ast.UnaryOp, ast.List, ast.Tuple)):
        try:
            return repr(ast.literal_eval(node))
        except (ValueError, TypeError):
            return None
    return None


def _constant(text: str) -> str | None:
    try:
        return _literal(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return None


def _arguments(call: str) -> tuple[str, ...] | None:
    try:
        node = ast.parse(call, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(node, ast.Call):
        return None
    values = [_literal(argument) for argument in node.args]
    return None if None in values else tuple(value for value in values if value is not None)
