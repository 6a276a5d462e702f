"""MBPP+ (Liu et al., arXiv 2305.01210): 378 tasks of MBPP with many times the tests, as `evalplus` judges them.

JSON has neither tuples, sets nor complex numbers, so the file holds lists and texts, and the task's number says what
each was (evalplus/data/mbpp.py, mbpp_deserialize_inputs). A few tasks have more than one right answer; what counts
there is evalplus/eval/_special_oracle.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.code_blocks import block_that_defines
from mify.eval.completers import Sampling
from mify.eval.plus_check import CHECK
from mify.eval.programs import Limits, Program
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
STOP = ('\n"""', "\nassert", "\nprint(", "\nif __name__", "\n```", "\nclass Test")

_SETS_EQUAL = (
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
)  # fmt: skip
_NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
_SPECIAL = {
    "are_equivalent": "True",
    "sum_div": "same or out == 0",
    # The published reference takes the height for the slant height: both readings count.
    "surface_Area": (
        "same or abs(out - round(arguments[0] ** 2 + 2 * arguments[0] * "
        "_math.sqrt((arguments[0] / 2) ** 2 + arguments[1] ** 2))) <= atol"
    ),
    # Numbers of different lengths: padded with zeros, beside what the reference does.
    "digit_distance_nums": (
        "same or out == sum(abs(int(a) - int(b)) for a, b in zip(*(str(n).zfill(max(map(len, map(str, arguments)))) "
        "for n in arguments)))"
    ),
    **dict.fromkeys(_SETS_EQUAL, "set(out) == set(expected)"),
    **dict.fromkeys(_NOT_NONE, "(out if isinstance(out, bool) else out is not None) == (expected is not None)"),
}

# What the lists of an input were, by task: functions of one input (a list of arguments), as text.
_EACH = "tuple(x) if isinstance(x, list) else x"
_TUPLES = "[tuple(a) for a in i]"
_LISTS_OF_TUPLES = "[[tuple(x) for x in a] for a in i]"
_TUPLES_OF_TUPLES = "[tuple(tuple(x) for x in a) for a in i]"
_FORMS: dict[str, tuple[int, ...]] = {
    _TUPLES: (
        2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809,
    ),
    _LISTS_OF_TUPLES: (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    "[[tuple(x) for x in i[0]], i[1]]": (75, 413, 444, 753),
    "[i[0], tuple(i[1])]": (106, 750),
    "[[set(x) if isinstance(x, list) and len(x) else {} for x in i[0]]]": (115,),
    "(float(i[0]), complex(i[1]))": (124,),
    "[tuple(i[0]), i[1]]": (250, 405, 446, 617, 720, 763, 808),
    _TUPLES_OF_TUPLES: (259, 401, 445),
    f"[tuple({_EACH} for x in i[0])]": (278,),
    "[tuple(i[0]), i[1], i[2]]": (307,),
    "[{k: tuple(v) for k, v in i[0].items()}, *i[1:]]": (722,),
    "[complex(i[0])]": (252,),
    "_all_tuples(i)": (580, 615, 791),
}  # fmt: skip
_FORM_OF = {number: form for form, numbers in _FORMS.items() for number in numbers}
_ALL_TUPLES = """
def _all_tuples(x):
    return tuple(map(_all_tuples, x)) if isinstance(x, list) else x
"""


def mbpp_plus(path: str | os.PathLike[str]) -> Task:
    """The task; `path` names MbppPlus.jsonl(.gz).

    Raises:
        MifyError: a field is missing, or a task's id holds no number.
    """
    file = Path(path)
    rows = read_jsonl(file, FIELDS)
    return Task(
        name="mbppplus",
        items=[Item(str(row["task_id"]), row) for row in rows],
        source=DataSource.of(file, "Apache-2.0"),
        sampling=Sampling(max_new_tokens=512, stop=STOP),
        prompt=lambda item: (item.fields["prompt"].strip() + "\n", None),
        answer=lambda item, completion: completion,
        chat=_chat_message,
        chat_answer=lambda item, completion: block_that_defines(completion, item.fields["entry_point"]),
        program=_program(file),
        canonical=lambda item: item.fields["canonical_solution"],
        texts=lambda item: (item.fields["prompt"], item.fields["canonical_solution"]),
        packages=("numpy",),
        # The answer and the reference each run on up to a thousand inputs.
        limits=Limits(wall_s=120.0, cpu_s=30.0, memory_bytes=2 << 30),
    )


def _chat_message(item: Item) -> str:
    return (
        "Write a Python function that solves this problem. Answer with the code in one block.\n\n"
        f"```python\n{item.fields['prompt'].strip()}\n```"
    )


def _program(file: Path) -> Callable[[Item, str], Program]:
    def program(item: Item, answer: str) -> Program:
        fields = item.fields
        entry = fields["entry_point"]
        special = _SPECIAL.get(entry)
        lines = [CHECK, _ALL_TUPLES, "_reference = {}", f"exec({_reference(fields)!r}, _reference)"]
        if special is not None:
            lines.append(f"def _special(out, expected, arguments, same, atol):\n    return {special}")
        lines.append(f"_inputs = [{_form(file, item.id)} for i in _json.loads({json.dumps(_inputs(fields))!r})]")
        lines.append(
            f"_check({entry}, _reference[{entry!r}], _inputs, {fields['atol']!r}, "
            f"special={'_special' if special is not None else None})"
        )
        return Program(item.id, answer, "\n".join(lines), entry_points=(entry,))

    return program


def _reference(fields: dict[str, Any]) -> str:
    return f"{fields['prompt']}\n{fields['canonical_solution']}"


def _inputs(fields: dict[str, Any]) -> list[Any]:
    return [*fields["base_input"], *fields["plus_input"]]


def _form(file: Path, identity: str) -> str:
    number = identity.rpartition("/")[2]
    if not number.isdigit():
        raise MifyError(f"{file}: the task id {identity!r} holds no number", "give the file as it was published")
    return _FORM_OF.get(int(number), "i")
