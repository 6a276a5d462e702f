"""MBPP+, NumpyEval and PandasEval on miniature files of their format: the real ones are run where the user has them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.eval.library_tasks import library_eval
from mify.eval.mbpp_plus import mbpp_plus
from mify.eval.sandbox import Form, Verdict, run_programs, sandbox_kind
from mify.eval.tasks import Item, Task


@pytest.fixture(autouse=True)
def confined() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plus_row(number: int, entry: str, reference: str, inputs: list[Any], atol: float = 0) -> dict[str, Any]:
    return {
        "task_id": f"Mbpp/{number}", "prompt": f'"""\nWrite {entry}.\n"""\n', "entry_point": entry,
        "canonical_solution": reference, "base_input": inputs[:1], "plus_input": inputs[1:], "atol": atol,
        "assertion": "", "contract": "",
    }  # fmt: skip


# (number, entry point, reference, inputs as the file has them, answers, which of them pass)
CASES: list[tuple[int, str, str, list[Any], list[str], list[bool]]] = [
    (2, "similar_elements", "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
     [[[3, 4, 5], [5, 4, 1]], [[1], [2]]],
     ["def similar_elements(a, b):\n    assert isinstance(a, tuple)\n    return [x for x in reversed(a) if x in b]\n",
      "def similar_elements(a, b):\n    return a\n"], [True, False]),
    (115, "empty_dit", "def empty_dit(x):\n    return not any(x)\n", [[[[], [1, 2]]], [[[]]]],
     ["def empty_dit(x):\n    assert all(isinstance(i, (set, dict)) for i in x)\n    return all(not i for i in x)\n"],
     [True]),
    (124, "angle_complex", "import cmath\ndef angle_complex(a, b):\n    return cmath.phase(complex(a, b.real))\n",
     [["0", "1j"], ["2", "1+3j"]],
     ["import math\ndef angle_complex(a, b):\n    return math.atan2(b.real, a)\n",
      "def angle_complex(a, b):\n    return 0.0\n"], [True, False]),
    (259, "maximize", "def maximize(a, b):\n    return tuple(tuple(map(max, x, y)) for x, y in zip(a, b))\n",
     [[[[1, 3], [4, 5]], [[6, 7], [3, 9]]]],
     ["def maximize(a, b):\n    return tuple(tuple(max(i, j) for i, j in zip(x, y)) for x, y in zip(a, b))\n",
      "def maximize(a, b):\n    return [[max(i, j) for i, j in zip(x, y)] for x, y in zip(a, b)]\n"], [True, False]),
    (295, "sum_div", "def sum_div(n):\n    return 1 + sum(i for i in range(2, n) if n % i == 0)\n", [[8], [12]],
     ["def sum_div(n):\n    return 0\n", "def sum_div(n):\n    return 5\n"], [True, False]),
    (558, "digit_distance_nums",
     "def digit_distance_nums(a, b):\n    return sum(int(d) for d in str(abs(a - b)))\n", [[1, 2], [23, 56], [7, 256]],
     ["def digit_distance_nums(a, b):\n    w = max(len(str(a)), len(str(b)))\n"
      "    return sum(abs(int(x) - int(y)) for x, y in zip(str(a).zfill(w), str(b).zfill(w)))\n",
      "def digit_distance_nums(a, b):\n    return abs(a - b)\n"], [True, False]),
    (581, "surface_Area", "def surface_Area(b, s):\n    return 2 * b * s + b * b\n", [[3, 4], [4, 5]],
     ["import math\ndef surface_Area(b, h):\n    return round(b * b + 2 * b * math.hypot(b / 2, h))\n",
      "def surface_Area(b, s):\n    return 2 * b * s + b * b\n", "def surface_Area(b, s):\n    return 0\n"],
     [True, True, False]),
    (580, "extract_even", "def extract_even(t):\n    return t\n", [[[1, [2, [4]]]]],
     ["def extract_even(t):\n    assert isinstance(t, tuple) and isinstance(t[1][1], tuple)\n    return t\n"], [True]),
    (772, "check_str", "import re\ndef check_str(s):\n    return re.match('[aeiou]', s)\n", [["annie"], ["dawood"]],
     ["def check_str(s):\n    return s[0] in 'aeiou'\n",
      "def check_str(s):\n    return s[0] if s[0] == 'a' else None\n",
      "def check_str(s):\n    return 'yes'\n"], [True, True, False]),
    (82, "volume_sphere", "import math\ndef volume_sphere(r):\n    return 4 / 3 * math.pi * r ** 3\n", [[10], [25]],
     ["def volume_sphere(r):\n    return 4.18879020478639 * r * r * r\n",
      "def volume_sphere(r):\n    return 4.18 * r ** 3\n"],
     [True, False]),
    (19, "test_duplicate", "def test_duplicate(a):\n    return len(a) != len(set(a))\n", [[[1, 2]], [[1, 1]]],
     ["def test_duplicate(a):\n    a.sort()\n    return any(x == y for x, y in zip(a, a[1:]))\n",
      "class Yes:\n    def __eq__(self, other):\n        return True\ndef test_duplicate(a):\n    return Yes()\n"],
     [True, False]),
]  # fmt: skip


def judged(task: Task, answers: list[tuple[Item, str]], form: Form = "auto") -> list[Verdict]:
    assert task.program is not None
    programs = [task.program(item, answer) for item, answer in answers]
    return run_programs(programs, limits=task.limits, packages=task.packages, form=form)


def mbpp_plus_file(folder: Path) -> Path:
    rows = [plus_row(number, entry, reference, inputs) for number, entry, reference, inputs, _, _ in CASES]
    return written(folder / "MbppPlus.jsonl", rows)


@pytest.mark.parametrize("form", ["auto", "apart"])
def test_mbpp_plus_judges_as_said(tmp_path: Path, form: Form) -> None:
    task = mbpp_plus(mbpp_plus_file(tmp_path))
    assert task.canonical is not None
    assert all(verdict.passed for verdict in judged(task, [(item, task.canonical(item)) for item in task.items], form))
    answers, expected = [], []
    for item, case in zip(task.items, CASES, strict=True):
        answers += [(item, answer) for answer in case[4]]
        expected += case[5]
    verdicts = judged(task, answers, form)
    assert [verdict.passed for verdict in verdicts] == expected, [v.detail for v in verdicts]


EVALPLUS = """
import json, sys, types
sys.modules["datasets"] = types.SimpleNamespace(load_dataset=None)  # for downloads, of which there are none
from evalplus.data.mbpp import mbpp_deserialize_inputs
from evalplus.eval import untrusted_check, MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.gen.util import trusted_exec

for job in json.load(sys.stdin):
    inputs = mbpp_deserialize_inputs(job["task_id"], job["inputs"])
    entry = job["entry_point"]
    expected, seconds = trusted_exec(job["reference"], inputs, entry, record_time=True,
                                     output_not_none=entry in MBPP_OUTPUT_NOT_NONE_TASKS)
    status, _ = untrusted_check("mbpp", job["code"], inputs, entry, expected, 0, seconds, fast_check=True,
                                min_time_limit=10.0)
    print(status == "pass", flush=True)
"""


def test_mbpp_plus_as_evalplus_judges_it(checkout: Path) -> None:
    """`make rivals` makes the environment; MIFY_EVALPLUS_PYTHON names another."""
    python = Path(os.environ.get("MIFY_EVALPLUS_PYTHON") or checkout / ".rivals" / "evalplus" / "bin" / "python")
    if not python.exists():
        pytest.skip("no environment with evalplus: make rivals")
    jobs = [
        {"task_id": f"Mbpp/{number}", "entry_point": entry, "reference": reference, "inputs": inputs, "code": answer}
        for number, entry, reference, inputs, answers, _ in CASES
        for answer in answers
        if "class Yes" not in answer  # evalplus is deceived by it, and so would be any harness of one process
    ]
    done = subprocess.run([python, "-c", EVALPLUS], input=json.dumps(jobs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = [good for case in CASES for answer, good in zip(case[4], case[5], strict=True) if "class Yes" not in answer]
    assert [line == "True" for line in done.stdout.split()] == ours


def test_mbpp_plus_without_a_number_or_a_field(tmp_path: Path) -> None:
    rows = [plus_row(1, "f", "def f(x):\n    return x\n", [[1]]) | {"task_id": "Mbpp/x"}]
    task = mbpp_plus(written(tmp_path / "a.jsonl", rows))
    assert task.program is not None
    with pytest.raises(MifyError, match="holds no number"):
        task.program(task.items[0], "")
    del rows[0]["atol"]
    with pytest.raises(MifyError, match="line 1: the field 'atol' is missing"):
        mbpp_plus(written(tmp_path / "b.jsonl", rows))


NUMPY = [
    {
        "task_id": "NumpyEval/0", "entry_point": "none",
        "prompt": "import numpy as np\n\n# Turn this list into a column.\na = [1, 2, 3]\nout =",
        "canonical_solution": [" np.array(a).reshape(-1, 1)"],
        "test": "\n\nMETADATA = {}\n\n\ndef check():\n    assert np.array_equal(out, np.array([[1], [2], [3]]))\n",
    },
    {
        "task_id": "NumpyEval/1", "entry_point": "top",
        "prompt": "import numpy as np\n\ndef top(x: np.ndarray) -> int:\n    # The largest value.\n",
        "canonical_solution": ["    return int(x.max())"],
        "test": "\n\nimport numpy as np\ndef check(candidate):\n    assert candidate(np.array([3, 9, 2])) == 9\n",
    },
]  # fmt: skip


def test_numpy_eval(tmp_path: Path) -> None:
    task = library_eval(written(tmp_path / "NumpyEval.jsonl", NUMPY), "numpy")
    assert task.canonical is not None
    first, second = task.items
    answers = [(item, task.canonical(item)) for item in task.items]
    answers += [(first, " np.array(a)"), (first, " np.zeros((3, 1))"), (second, "    return x.min()")]
    assert [verdict.passed for verdict in judged(task, answers)] == [True, True, False, False, False]
    # Arrays stay in the solution's process; the tests get at their values through it.
    assert [verdict.passed for verdict in judged(task, [answers[0], answers[2]], "apart")] == [True, False]


def test_answers_of_chat_models(tmp_path: Path) -> None:
    task = library_eval(written(tmp_path / "NumpyEval.jsonl", NUMPY), "numpy")
    assert task.chat is not None
    assert task.chat_answer is not None
    script, function = task.items
    assert script.fields["prompt"].rstrip() in task.chat(script)
    answer = task.chat_answer
    answers = [
        (script, answer(script, f"Sure:\n```python\n{script.fields['prompt']} np.array(a)[:, None]\n```")),
        (script, answer(script, "```python\na = [1, 2, 3]\nout = np.array([a]).T\n```")),
        (function, answer(function, "```python\ndef top(x):\n    return np.max(x)\n```")),
        (function, answer(function, "I do not know.")),
    ]
    assert [verdict.passed for verdict in judged(task, answers)] == [True, True, True, False]


def test_pandas_eval(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rows = [
        {
            "task_id": "PandasEval/0", "entry_point": "none",
            "prompt": "import pandas as pd\n\ndf = pd.DataFrame({'a': [1, 2, 3]})\n# How many rows?\nrows =",
            "canonical_solution": [" len(df)"],
            "test": "\n\nMETADATA = {}\n\n\ndef check():\n    assert rows == 3\n",
        },
    ]  # fmt: skip
    task = library_eval(written(tmp_path / "PandasEval.jsonl", rows), "pandas")
    item = task.items[0]
    verdicts = judged(task, [(item, " len(df)"), (item, " df.size + 1")])
    assert [verdict.passed for verdict in verdicts] == [True, False], verdicts
