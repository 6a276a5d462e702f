"""A family of small verifiable tasks: functions of a number or a text, given by a spec in words, with hidden tests.

A spec is a chain of operations ("Add 3, then take the remainder modulo 7."). Its reference program does one a line.
Specs are drawn and split by a hash of their words, so that training never sees a held-out one; the parts they are made
of it does see. Tests are the reference's values at arguments that no prompt shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mify.errors import MifyError
from mify.files import atomic_file
from mify.post.verifiable import CodeTask

TESTS = 8
SHOWN = 2  # examples in a prompt that shows any


@dataclass(frozen=True, slots=True)
class Operation:
    """Words and code of one step on `x`, with a parameter {k} drawn from `choices`, and what it computes."""

    words: str
    code: str
    choices: tuple[str, ...]


def _numbers(low: int, high: int) -> tuple[str, ...]:
    return tuple(str(value) for value in range(low, high))


_LETTERS = tuple("abcdefgh")
NUMBERS = (
    Operation("add {k}", "x + {k}", _numbers(1, 10)),
    Operation("subtract {k}", "x - {k}", _numbers(1, 10)),
    Operation("multiply by {k}", "x * {k}", _numbers(2, 10)),
    Operation("take the remainder modulo {k}", "x % {k}", _numbers(2, 10)),
    Operation("divide by {k} and round down", "x // {k}", _numbers(2, 10)),
    Operation("square", "x * x", ("",)),
    Operation("negate", "-x", ("",)),
    Operation("take the absolute value", "abs(x)", ("",)),
    Operation("raise to {k} at least", "max(x, {k})", _numbers(0, 10)),
    Operation("lower to {k} at most", "min(x, {k})", _numbers(0, 10)),
)
TEXTS = (
    Operation("reverse", "x[::-1]", ("",)),
    Operation("make it upper case", "x.upper()", ("",)),
    Operation("keep the first {k} letters", "x[:{k}]", _numbers(1, 7)),
    Operation("keep the last {k} letters", "x[-{k}:]", _numbers(1, 7)),
    Operation("drop the first {k} letters", "x[{k}:]", _numbers(1, 7)),
    Operation("repeat {k} times", "x * {k}", _numbers(2, 6)),
    Operation("append {k}", "x + '{k}'", _LETTERS),
    Operation("put {k} in front", "'{k}' + x", _LETTERS),
    Operation("remove every {k}", "x.replace('{k}', '')", _LETTERS),
    Operation("keep every second letter", "x[::2]", ("",)),
    Operation("sort the letters", "''.join(sorted(x))", ("",)),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A task with its reference answer; `held_out` by a hash of its words."""

    task: CodeTask
    answer: str
    held_out: bool


def draw_specs(
    count: int, *, seed: int, held_out: bool, lengths: Sequence[int] = (2, 3), examples: bool = False
) -> list[Spec]:
    """`count` different specs of one side of the split, half of numbers, half of texts.

    Args:
        lengths: how many operations a spec may have. examples: whether prompts show two calls with their values.

    Raises:
        MifyError: there are not so many.
    """
    generator = np.random.Generator(np.random.PCG64([seed, int(held_out)]))
    found: dict[str, Spec] = {}
    for _ in range(50 * count + 1000):
        kind = len(found) % 2
        spec = _draw(generator, NUMBERS if kind == 0 else TEXTS, int(generator.choice(lengths)), kind == 0, examples)
        if spec is not None and spec.held_out == held_out:
            found.setdefault(spec.task.id, spec)
        if len(found) == count:
            return list(found.values())
    raise MifyError(f"the family has no {count} such specs", "ask for fewer, or for longer chains")


def _draw(
    generator: np.random.Generator, operations: Sequence[Operation], length: int, numbers: bool, examples: bool
) -> Spec | None:
    words, lines = [], []
    for _ in range(length):
        operation = operations[int(generator.integers(len(operations)))]
        k = operation.choices[int(generator.integers(len(operation.choices)))]
        words.append(operation.words.format(k=k))
        lines.append(f"    x = {operation.code.format(k=k)}\n")
    sentence = ", then ".join(words)
    sentence = sentence[:1].upper() + sentence[1:] + "."
    answer = "def f(x):\n" + "".join(lines) + "    return x"
    digest = hashlib.sha256(f"{numbers}:{sentence}".encode()).digest()
    function = _function(answer)
    own = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    arguments = _arguments(own, numbers, TESTS + SHOWN)
    values = [repr(function(argument)) for argument in arguments]
    if len(set(values)) < 4:
        return None  # a constant would pass much of it
    calls = [(f"f({argument!r})", value) for argument, value in zip(arguments, values, strict=True)]
    shown = tuple(calls[:SHOWN]) if examples else ()
    question = "".join([f"f(x): {sentence}", *(f"\n{call} == {value}" for call, value in shown)])
    task = CodeTask(
        digest[8:16].hex(),
        [{"role": "user", "content": question}],
        "f",
        tuple(f"assert f({a!r}) == {v}" for a, v in zip(arguments[SHOWN:], values[SHOWN:], strict=True)),
        shown,
    )
    return Spec(task, answer, digest[16] < 64)


def _function(program: str) -> Callable[[object], object]:
    """The reference: its text is made of the operations above and nothing else."""
    namespace: dict[str, Callable[[object], object]] = {}
    exec(program, namespace)
    return namespace["f"]


def _arguments(generator: np.random.Generator, numbers: bool, count: int) -> list[object]:
    chosen: list[object] = []
    while len(chosen) < count:
        if numbers:
            value: object = int(generator.integers(-30, 31))
        else:
            value = "".join(generator.choice(list("abcdefgh"), size=int(generator.integers(5, 10))))
        if value not in chosen:
            chosen.append(value)
    return chosen


def write_conversations(specs: Sequence[Spec], path: Path) -> None:
    """Tasks and their reference answers as conversations to fine-tune on."""
    with atomic_file(path) as temporary:
        lines = [
            json.dumps({"messages": [*spec.task.prompt, {"role": "assistant", "content": spec.answer}]})
            for spec in specs
        ]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tasks(specs: Sequence[Spec], path: Path) -> None:
    """The tasks as lines of JSON, without their answers."""
    with atomic_file(path) as temporary:
        lines = (json.dumps(spec.task.to_dict(), ensure_ascii=False) for spec in specs)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
