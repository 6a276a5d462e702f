"""MBPP (Austin et al., arXiv 2108.07732): 974 short Python tasks with three asserts each; the test split is ids 11 to
510.

The prompt is the paper's: three solved tasks (ids 2, 3 and 4), then the task with its asserts, which the model sees.
"""

from __future__ import annotations

import builtins
import os
import re
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import Sampling
from mify.eval.programs import Limits, Program
from mify.eval.suspicion import names_used
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

FIELDS = ("task_id", "text", "code", "test_list", "test_setup_code")
SHOTS = (2, 3, 4)
TEST_SPLIT = range(11, 511)


def mbpp(path: str | os.PathLike[str], *, split: str = "test") -> Task:
    """The task.

    Args:
        path: mbpp.jsonl(.gz). split: "test" (500 tasks) or "all" (974, the prompt's own included).

    Raises:
        MifyError: a field is missing, or one of the three tasks that the prompt shows.
    """
    if split not in ("test", "all"):
        raise ValueError(f"split is {split!r}; it must be 'test' or 'all'")
    file = Path(path)
    rows = read_jsonl(file, FIELDS)
    by_id = {int(row["task_id"]): row for row in rows}
    missing = [number for number in SHOTS if number not in by_id]
    if missing:
        raise MifyError(f"{file} lacks task {missing[0]}, which the prompt shows", "give the whole file")
    shots = "".join(_asked(by_id[number]) + f"{_unix(by_id[number]['code'])}\n[DONE]\n\n" for number in SHOTS)
    chosen = [row for number, row in sorted(by_id.items()) if split == "all" or number in TEST_SPLIT]
    return Task(
        name="mbpp",
        items=[Item(f"mbpp/{row['task_id']}", row) for row in chosen],
        source=DataSource.of(file, "CC-BY-4.0"),
        sampling=Sampling(max_new_tokens=256, stop=("[DONE]", "\n[BEGIN]", "\nYou are an expert")),
        prompt=lambda item: (shots + _asked(item.fields), None),
        answer=lambda item, completion: completion,
        program=program,
        canonical=lambda item: _unix(item.fields["code"]),
        texts=lambda item: (item.fields["text"], item.fields["code"]),
        packages=("numpy",),
        limits=Limits(wall_s=60.0, cpu_s=15.0),  # the slowest published solution takes 4 s
    )


def program(item: Item, answer: str) -> Program:
    """The solution; then the set-up code and the asserts, which may call whatever the solution is to define."""
    fields = item.fields
    asserts = "\n".join(map(_unix, fields["test_list"]))
    tests = f"{_unix(fields['test_setup_code'])}\n{asserts}"
    wanted = names_used(tests) - set(dir(builtins)) | called_first(asserts)
    return Program(item.id, answer, tests, entry_points=tuple(sorted(wanted)))


def called_first(asserts: str) -> set[str]:
    """The functions called at the left end of an assert, builtin or not: one task asks to define `sum`."""
    return {match.group(1) for match in re.finditer(r"^\s*assert\s*\(*(\w+)\(", asserts, re.MULTILINE)} - {
        "set",
        "sorted",
    }


def _asked(fields: dict[str, Any]) -> str:
    tests = "\n".join(map(_unix, fields["test_list"]))
    return (
        f"You are an expert Python programmer, and here is your task: {_unix(fields['text'])} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")
