"""CRUXEval (Gu et al., arXiv 2401.03065): 800 short functions; predict the output from the input, or an input from the
output. The prompt is the paper's direct one, with its two examples.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mify.eval.completers import Sampling
from mify.eval.programs import Limits, Program
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

_OUTPUT_PROMPT = """You are given a Python function and an assertion containing an input to the function. Complete the \
assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing the \
provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any extra \
information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

[PYTHON]
{code}
assert f({input}) == ??
[/PYTHON]
[ANSWER]
"""
_INPUT_PROMPT = """You will be given a function f and an output in the form f(??) == output. Find any input such that \
executing f on the input leads to the given output. There may be multiple answers, but you should only output one. In \
[ANSWER] and [/ANSWER] tags, complete the assertion with one such input that will produce the output when executing \
the function.

[PYTHON]
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count
assert f(??) == 3
[/PYTHON]
[ANSWER]
assert f(["mq", "px", "zy"]) == 3
[/ANSWER]

[PYTHON]
def f(s1, s2):
    return s1 + s2
assert f(??) == "banana"
[/PYTHON]
[ANSWER]
assert f("ba", "nana") == "banana"
[/ANSWER]

[PYTHON]
{code}
assert f(??) == {output}
[/PYTHON]
[ANSWER]
"""


def cruxeval(path: str | os.PathLike[str], predict: str) -> Task:
    """The task.

    Args:
        path: cruxeval.jsonl. predict: "output" (CRUXEval-O) or "input" (CRUXEval-I).
    """
    if predict not in ("output", "input"):
        raise ValueError(f"predict is {predict!r}; it must be 'output' or 'input'")
    file = Path(path)
    rows = read_jsonl(file, ("id", "code", "input", "output"))
    outputs = predict == "output"
    template = _OUTPUT_PROMPT if outputs else _INPUT_PROMPT
    return Task(
        name=f"cruxeval-{predict}",
        items=[Item(str(row["id"]), row) for row in rows],
        source=DataSource.of(file, "MIT"),
        sampling=Sampling(max_new_tokens=128, stop=("[/ANSWER]", "\n[PYTHON]")),
        prompt=lambda item: (
            template.format(**{name: item.fields[name] for name in ("code", "input", "output")}),
            None,
        ),
        answer=_predicted_output if outputs else _predicted_call,
        program=_output_program if outputs else _input_program,
        canonical=lambda item: item.fields["output"] if outputs else f"f({item.fields['input']})",
        texts=lambda item: (item.fields["code"],),
        limits=Limits(cpu_s=5.0),
    )


def _predicted_output(item: Item, completion: str) -> str:
    """What stands behind `==` (the last, where the model repeats the assertion), as the original takes it."""
    text = completion.split("[/ANSWER]")[0].strip()
    return text.split("==")[-1].strip() if "==" in text else text


def _predicted_call(item: Item, completion: str) -> str:
    """The call `f(…)` before `==`."""
    text = completion.split("[/ANSWER]")[0].strip()
    text = re.sub(r"^assert\s+", "", text.split("==")[0].strip())
    return text if text.startswith("f(") else f"f({text})"


def _output_program(item: Item, answer: str) -> Program:
    # As in the original, an answer that calls f on the input instead of saying its output is none.
    said = "raise AssertionError('the call itself is no answer')" if f"f({item.fields['input']})" in answer else "pass"
    return _compared(item, answer, said)


def _input_program(item: Item, answer: str) -> Program:
    said = "pass" if "f(" in answer else "raise AssertionError('no call of f')"
    return _compared(item, answer, said)


def _compared(item: Item, answer: str, first: str) -> Program:
    source = f"{item.fields['code']}\n{first}\ndef predicted():\n    return (\n{answer}\n)\n"
    return Program(item.id, source, f"assert {item.fields['output']} == predicted()", entry_points=("predicted",))
