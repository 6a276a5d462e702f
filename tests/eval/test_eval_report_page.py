"""The evaluation's page, and the paper's table beside one's own scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mify.curation.documents import Document
from mify.eval.completers import OnCompletion, Prompt, Sampling
from mify.eval.evaluate import evaluate
from mify.eval.infilling import held_out_lines
from mify.eval.paper import TABLE, beside
from mify.eval.report_page import page


class Exact:
    """Answers with the right line, but for the prompts whose number is odd."""

    name, can_infill, can_chat = "<exact> & more", True, False
    fim_orders: tuple[str, ...] = ("psm", "spm")

    def __init__(self, answers: dict[str, str]) -> None:
        self.identity: dict[str, Any] = {"name": self.name, "kind": "scripted"}
        self.answers = answers

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None:
        for number, prompt in enumerate(prompts):
            on_completion(prompt, self.answers[prompt.key[0]] if number % 2 == 0 else "<wrong>", {})


def documents() -> list[Document]:
    rows = [f"value_{n} = compute({n}, 'text')" for n in range(6)]
    return [
        Document.create(f"# file {n}\n{row}\nprint(value_{n})\n", "code", "python", "MIT", "s", "r", f"{n}.py")
        for n, row in enumerate(rows)
    ]


def test_a_run_leaves_a_page(tmp_path: Path) -> None:
    task = held_out_lines(documents(), lines=6, lines_per_document=1)
    answers = {item.id: item.fields["middle"] for item in task.items}
    results = evaluate(Exact(answers), [task], tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert results[0]["passed"] == 3
    assert "<b>50.0</b>" in text
    assert "3 of 6" in text
    assert "&lt;exact&gt; &amp; more" in text
    assert "&lt;wrong&gt;" in text
    assert "<exact>" not in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "Not checked: infilling." in text
    assert "Beside the paper" not in text
    assert page(results, tmp_path) == text
    assert page(results, tmp_path / "elsewhere").count("<pre") == 0


def test_the_paper_stands_beside_whole_benchmarks_only() -> None:
    def result(task: str, score: float, items: int = 10, of: int = 10) -> dict[str, Any]:
        return {"task": task, "score": score, "items": items, "of_items": of}

    rows = {row["benchmark"]: row for row in beside([result("humaneval", 0.25), result("mbpp", 0.5, items=5)])}
    assert rows["HumanEval"]["here"] == pytest.approx(25.0)
    assert rows["HumanEval"]["paper"] == 53.66
    assert rows["MBPP"]["here"] is None
    bfcl = next(entry for entry in TABLE if entry.benchmark == "BFCL v2")
    all_but_one = [result(name, 0.5) for name in bfcl.tasks[1:]]
    assert {row["benchmark"]: row for row in beside(all_but_one)}["BFCL v2"]["here"] is None
    whole = [*all_but_one, result(bfcl.tasks[0], 1.0)]
    found = {row["benchmark"]: row for row in beside(whole)}["BFCL v2"]["here"]
    assert found == pytest.approx(100 * (0.5 * 12 + 1) / 13)
