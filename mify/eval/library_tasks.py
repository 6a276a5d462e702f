"""NumpyEval and PandasEval (Zan et al., arXiv 2206.06888, "CERT"): 101 problems each on a library's calls.

A prompt is either a function to complete, or a script that ends where a value is to be computed; then the entry point
is "none" and the tests look at the script's variables. Those are often arrays and tables: in strict mode they stay in
the solution's process, and tests that need more of them than their values do not pass.
"""

from __future__ import annotations

import builtins
import os
import re
from importlib.util import find_spec
from pathlib import Path

from mify.eval.code_blocks import block_that_defines, code_blocks
from mify.eval.completers import Sampling
from mify.eval.programs import Limits, Program
from mify.eval.suspicion import names_used
from mify.eval.tasks import DataSource, Item, Task, read_jsonl

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
# Where the original cuts a completion (cert/scripts, first_block).
STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif")
PACKAGES = {"numpy": ("numpy",), "pandas": ("numpy", "pandas", "dateutil")}


def library_eval(path: str | os.PathLike[str], library: str) -> Task:
    """The task.

    Args:
        path: NumpyEval.jsonl(.gz) or PandasEval.jsonl(.gz). library: "numpy" or "pandas".

    Raises:
        MifyError: a field is missing.
    """
    if library not in PACKAGES:
        raise ValueError(f"library is {library!r}; it must be one of {', '.join(PACKAGES)}")
    file = Path(path)
    rows = read_jsonl(file, FIELDS)
    optional = ("six",) if library == "pandas" and find_spec("six") else ()
    return Task(
        name=f"{library}eval",
        items=[Item(str(row["task_id"]), row) for row in rows],
        source=DataSource.of(file, "MIT"),
        sampling=Sampling(max_new_tokens=128, stop=STOP),
        prompt=lambda item: (item.fields["prompt"], None),
        answer=lambda item, completion: completion,
        chat=_chat_message,
        chat_answer=_chat_answer,
        program=program,
        canonical=_canonical,
        texts=lambda item: (item.fields["prompt"] + _canonical(item),),
        packages=PACKAGES[library] + optional,
        # Importing pandas takes a second of CPU and, with its threads' stacks, gigabytes of address space.
        limits=Limits(cpu_s=15.0, wall_s=60.0, memory_bytes=4 << 30, processes=64),
    )


def program(item: Item, answer: str) -> Program:
    """The original's program: prompt and completion; then the tests and the call of `check`."""
    fields = item.fields
    script = fields["entry_point"] == "none"
    tests = f"{fields['test']}\ncheck({'' if script else fields['entry_point']})"
    wanted: tuple[str, ...] = (fields["entry_point"],)
    if script:
        defined = set(re.findall(r"^\s*(?:import|from)\s.*?(\w+)\s*$|^\s*def\s+(\w+)|^(\w+)\s*=", fields["test"], re.M))
        own = {name for group in defined for name in group if name}
        wanted = tuple(sorted(names_used(tests) - own - set(dir(builtins)) - {"check"}))
    return Program(item.id, fields["prompt"] + answer, tests, entry_points=wanted)


def _canonical(item: Item) -> str:
    solution = item.fields["canonical_solution"]
    return str(solution[0] if isinstance(solution, list) else solution)


def _chat_message(item: Item) -> str:
    return (
        "Complete the following Python code. Answer with the whole code in one block, and change nothing that is there."
        f"\n\n```python\n{item.fields['prompt'].rstrip()}\n```"
    )


def _chat_answer(item: Item, completion: str) -> str:
    """What to put behind the prompt: the code itself where it continues it, else all of it once more."""
    entry = item.fields["entry_point"]
    code = code_blocks(completion)[0] if entry == "none" else block_that_defines(completion, entry)
    prompt = item.fields["prompt"]
    if code.startswith(prompt.rstrip()):
        return code[len(prompt.rstrip()) :]
    # The prompt may end inside a statement or a function's head: it is closed, then the whole code follows.
    closing = "\n    pass\n" if entry != "none" else " None\n" if prompt.rstrip().endswith("=") else "\n"
    return f"{closing}{code}"
