"""HumanEval+ (Liu et al., arXiv 2305.01210): HumanEval with many times the tests, compared with a reference solution.

Judged as `evalplus` judges: the original inputs and the added ones; equal outputs, or close ones where a tolerance is
set or the expected value is a float; HumanEval/32 by the polynomial's value.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mify.eval.completers import Sampling
from mify.eval.humaneval import STOP, chat_answer, chat_message
from mify.eval.plus_check import CHECK
from mify.eval.programs import Limits, Program
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")

# HumanEval/32 asks for a zero of a polynomial, of which there are several.
_ZERO = """
def _is_zero(out, arguments, atol):
    (coefficients,) = arguments
    return abs(sum(c * _math.pow(out, i) for i, c in enumerate(coefficients))) <= atol
"""


def humaneval_plus(path: str | os.PathLike[str], *, base_only: bool = False) -> Task:
    """The task.

    Args:
        path: HumanEvalPlus.jsonl(.gz). base_only: only HumanEval's own inputs, judged the same way.
    """
    file = Path(path)
    rows = read_jsonl(file, FIELDS)

    def program(item: Item, answer: str) -> Program:
        fields = item.fields
        entry = fields["entry_point"]
        inputs = fields["base_input"] + ([] if base_only else fields["plus_input"])
        reference = fields["prompt"] + fields["canonical_solution"]
        tests = (
            f"{CHECK}{_ZERO}\n_reference = {{}}\nexec({reference!r}, _reference)\n"
            f"_check({entry}, _reference[{entry!r}], _json.loads({json.dumps(inputs)!r}), "
            f"{fields['atol']!r}, judged={'_is_zero' if entry == 'find_zero' else None})"
        )
        return Program(item.id, fields["prompt"] + answer, tests, entry_points=(entry,))

    return Task(
        name="humanevalplus-base" if base_only else "humanevalplus",
        items=[Item(str(row["task_id"]), row) for row in rows],
        source=DataSource.of(file, "Apache-2.0"),
        sampling=Sampling(max_new_tokens=256, stop=STOP),
        prompt=lambda item: (item.fields["prompt"], None),
        answer=lambda item, completion: completion,
        chat=chat_message,
        chat_answer=chat_answer,
        program=program,
        canonical=lambda item: item.fields["canonical_solution"],
        texts=lambda item: (item.fields["prompt"] + item.fields["canonical_solution"],),
        packages=("numpy",),
        # Both the answer and the reference run on up to a thousand inputs.
        limits=Limits(wall_s=120.0, cpu_s=30.0, memory_bytes=2 << 30),
    )
