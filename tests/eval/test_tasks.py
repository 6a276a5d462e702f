"""The runner: scores, resume, and refusals, with a model whose answers are known."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mify.curation.documents import Document
from mify.errors import MifyError
from mify.eval.benchmarks import tasks_by_name
from mify.eval.completers import OnCompletion, Prompt, Sampling, fit_gap
from mify.eval.contamination import contamination
from mify.eval.endpoint import EndpointCompleter
from mify.eval.evaluate import evaluate
from mify.eval.humaneval import chat_answer, humaneval
from mify.eval.infilling import eligible, held_out_lines
from mify.eval.runner import RunOptions, run_task, without_addresses
from mify.eval.sandbox import sandbox_kind
from mify.eval.tasks import Item, Task, read_jsonl


class Scripted:
    """A completer that answers from a function and counts what it was asked."""

    name, can_infill, can_chat = "scripted", True, True
    fim_orders: tuple[str, ...] = ("psm", "spm")

    def __init__(self, answer: Callable[[Prompt], str | None], stop_after: int | None = None) -> None:
        self.identity: dict[str, Any] = {"name": self.name}
        self.asked: list[tuple[str, int]] = []
        self._answer, self._stop_after = answer, stop_after

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None:
        for prompt in prompts:
            if prompt.key not in done:
                if self._stop_after is not None and len(self.asked) >= self._stop_after:
                    raise KeyboardInterrupt
                self.asked.append(prompt.key)
                text = self._answer(prompt)
                on_completion(prompt, text, {} if text is not None else {"error": "HTTP 500: nothing"})


def canonical(task: Task, wrong: Sequence[str] = ()) -> Callable[[Prompt], str]:
    by_id = {item.id: item for item in task.items}
    assert task.canonical is not None
    solve = task.canonical

    def answer(prompt: Prompt) -> str:
        return "    return None\n" if prompt.key[0] in wrong else solve(by_id[prompt.key[0]])

    return answer


@pytest.fixture
def confined() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")


def test_humaneval_canonical_solutions_pass_and_wrong_ones_do_not(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    wrong = [item.id for item in task.items[::10]]
    result = run_task(task, Scripted(canonical(task, wrong)), tmp_path)
    assert len(task.items) == 164
    assert result["passed"] == 164 - len(wrong)
    assert result["score"] == pytest.approx((164 - len(wrong)) / 164)
    assert result["statuses"] == {"failed": len(wrong), "passed": 164 - len(wrong)}
    assert result["data"]["sha256"] == "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
    verdicts = read_lines(tmp_path / "humaneval.verdicts.jsonl")
    assert {record["id"] for record in verdicts if record["status"] != "passed"} == set(wrong)
    completions = read_lines(tmp_path / "humaneval.completions.jsonl")
    assert completions[0]["prompt"] == min(task.items, key=lambda item: item.id).fields["prompt"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_a_stopped_run_continues_and_ends_with_the_same_bytes(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    options = RunOptions(limit=12)
    whole = Scripted(canonical(task))
    run_task(task, whole, tmp_path / "whole", options)
    stopped = Scripted(canonical(task), stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, stopped, tmp_path / "stopped", options)
    again = Scripted(canonical(task))
    run_task(task, again, tmp_path / "stopped", options)
    assert len(again.asked) == 7
    assert not set(stopped.asked) & set(again.asked)
    for name in ("humaneval.completions.jsonl", "humaneval.verdicts.jsonl", "humaneval.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    third = Scripted(canonical(task))
    run_task(task, third, tmp_path / "stopped", options)
    assert third.asked == []


def test_samples_and_pass_at_k(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    right = canonical(task)

    def answer(prompt: Prompt) -> str:
        return right(prompt) if prompt.key[1] == 0 else "    pass\n"

    options = RunOptions(samples=4, k=(1, 2, 4), temperature=0.8, limit=5)
    result = run_task(task, Scripted(answer), tmp_path, options)
    assert {name: score["value"] for name, score in result["scores"].items()} == pytest.approx(
        {"pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0}
    )


def test_an_unanswered_prompt_counts_as_failed_and_is_asked_again(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    right = canonical(task)
    options = RunOptions(limit=4)
    first = run_task(task, Scripted(lambda p: None if p.key[0] == "HumanEval/2" else right(p)), tmp_path, options)
    assert first["statuses"] == {"no answer": 1, "passed": 3}
    assert first["score"] == 0.75
    retry = Scripted(right)
    second = run_task(task, retry, tmp_path, options)
    assert retry.asked == [("HumanEval/2", 0)]
    assert second["statuses"] == {"passed": 4}


def test_strict_is_said_in_the_result(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    result = run_task(task, Scripted(canonical(task)), tmp_path, RunOptions(limit=40, form="apart"))
    assert (result["passed"], result["judged"]["form"]) == (40, "apart")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(samples=3), "temperature 0"),
        (RunOptions(k=(10,)), "needs at least"),
        (RunOptions(limit=0), "no items"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: RunOptions, message: str) -> None:
    with pytest.raises(MifyError, match=message):
        run_task(humaneval(), Scripted(lambda prompt: ""), tmp_path, options)


def test_a_model_that_cannot_infill_or_chat_is_refused(tmp_path: Path) -> None:
    completer = Scripted(lambda prompt: "")
    completer.can_infill = completer.can_chat = False  # type: ignore[misc]
    with pytest.raises(MifyError, match="no FIM tokens"):
        run_task(held_out_lines(code_documents()), completer, tmp_path)
    with pytest.raises(MifyError, match="no chat template"):
        run_task(humaneval(), completer, tmp_path, RunOptions(chat=True))


def code_documents() -> list[Document]:
    texts = [
        "import os\n\n\ndef area(width, height):\n    # not this comment line\n    return width * height\n",
        "total = 0\nfor number in range(10):\n    total += number ** 2   \nprint(total, 'is the total')\n",
        "x = 1\ny = 2\n",
    ]
    return [Document.create(text, "code", "python", "MIT", "s", "r", f"{n}.py") for n, text in enumerate(texts)]


def test_held_out_lines_are_chosen_by_the_document_alone(tmp_path: Path) -> None:
    documents = code_documents()
    task = held_out_lines(documents, lines_per_document=3)
    for item in task.items:
        fields = item.fields
        document = next(document for document in documents if document.id.startswith(item.id[:16]))
        line = document.text.split("\n")[int(item.id.split(":")[1]) - 1]
        assert eligible(line)
        assert fields["middle"] == line.strip()
        assert (fields["prefix"] + fields["middle"] + fields["suffix"]).split() == document.text.split()
    prose = Document.create("Some words that are no code at all\n" * 9, "text", "markdown", "MIT", "s", "r", "p")
    again = held_out_lines([prose, *reversed(documents)], lines_per_document=3)
    assert [item.id for item in again.items] == [item.id for item in task.items]
    assert held_out_lines(documents, lines=1).items[0].id == held_out_lines(documents).items[0].id
    result = run_task(task, Scripted(canonical(task)), tmp_path)
    assert result["score"] == 1.0
    assert result["judged"] == {"how": "exact match"}
    answers = {item.id: item for item in task.items}
    behind = Scripted(lambda prompt: answers[prompt.key[0]].fields["middle"] + "  \nand more")
    assert run_task(task, behind, tmp_path / "b")["score"] == 1.0
    assert run_task(task, Scripted(lambda prompt: "pass"), tmp_path / "c")["score"] == 0.0
    with pytest.raises(MifyError, match="no held-out code"):
        held_out_lines([prose])


def test_random_spans_of_a_miniature_file(confined: None, tmp_path: Path) -> None:
    rows = []
    for number, item in enumerate(humaneval().items[:6]):
        body = item.fields["canonical_solution"]
        start, end = len(body) // 3 + number, 2 * len(body) // 3
        rows.append(
            {
                "task_id": f"RandomSpanInfilling/{item.id}/{number}",
                "prompt": item.fields["prompt"] + body[:start],
                "canonical_solution": body[start:end],
                "suffix": body[end:],
                **{name: item.fields[name] for name in ("entry_point", "test")},
            }
        )
    path = tmp_path / "HumanEval-RandomSpanInfilling.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = tasks_by_name(["humaneval-infilling-random-span"], tmp_path, list)
    result = run_task(
        task, Scripted(canonical(task, [task.items[0].id])), tmp_path / "out", RunOptions(fim_order="spm")
    )
    assert result["statuses"] == {"failed": 1, "passed": 5}
    assert result["sampling"]["fim_order"] == "spm"


def test_an_endpoint_cannot_be_asked_for_an_order(tmp_path: Path) -> None:
    completer = EndpointCompleter("http://127.0.0.1:9/v1", "m", suffix=True)
    with pytest.raises(MifyError, match="cannot be asked in SPM order"):
        run_task(held_out_lines(code_documents()), completer, tmp_path, RunOptions(fim_order="spm"))


def test_contamination_names_what_training_has_seen(confined: None, tmp_path: Path) -> None:
    task = humaneval()
    seen = task.items[3].fields["prompt"] + task.items[3].fields["canonical_solution"]
    training = [
        Document.create(f"# copied from somewhere\n{seen}", "code", "python", "MIT", "s", "r", "leak.py"),
        Document.create("def nothing():\n    return 'of this kind'\n", "code", "python", "MIT", "s", "r", "ok.py"),
    ]
    wrong = [item.id for item in task.items[:3]]
    options = RunOptions(limit=8)
    result = run_task(task, Scripted(canonical(task, wrong)), tmp_path, options)
    found = contamination(task, training, result, tmp_path)
    assert (found["contaminated"], found["items"], found["documents"]) == (1, 8, 2)
    assert found["found"][0]["item"] == task.items[3].id
    assert found["found"][0]["where"] == "leak.py"
    assert result["score"] == 5 / 8
    assert found["score_without"] == 4 / 7
    results = evaluate(Scripted(canonical(task, wrong)), [task], tmp_path, options=options, training=training)
    assert results[0]["contamination"] == found
    assert json.loads((tmp_path / "evaluation.json").read_text())["results"][0]["score"] == 5 / 8


def test_chat_answers() -> None:
    item = Item("HumanEval/0", {"entry_point": "f", "prompt": 'def f(x):\n    """Doubles."""\n'})

    def run(completion: str) -> Any:
        namespace: dict[str, Any] = {}
        exec(item.fields["prompt"] + chat_answer(item, completion), namespace)
        return namespace["f"](2)

    assert run("Sure!\n```python\ndef f(x):\n    return x * 2\n```\nThis doubles.") == 4
    assert run("```\nprint('example')\n```\nor\n```python\ndef f(x):\n    return x * 2\n```") == 4
    assert run("def f(x):\n    return x * 2") == 4
    assert run("```python\n    return x * 2\n```") == 4
    assert run("```python\nreturn x * 2\n```") == 4
    assert run("```python\ndef f(x):\n    return x * 2") == 4  # cut before the fence was closed


def test_fit_gap_keeps_what_is_near() -> None:
    encode, decode = lambda text: [ord(c) for c in text], lambda ids: "".join(map(chr, ids))
    assert fit_gap("abc", "xyz", 6, encode, decode) == ("abc", "xyz")
    assert fit_gap("a" * 50 + "b", "x" + "y" * 50, 30, encode, decode) == ("a" * 19 + "b", "x" + "y" * 9)
    assert fit_gap("ab", "x" * 50, 30, encode, decode) == ("ab", "x" * 28)
    assert fit_gap("a" * 50, "x", 30, encode, decode) == ("a" * 29, "x")


def test_benchmark_files_that_are_wrong(tmp_path: Path) -> None:
    good = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": " pass", "test": ""}
    lacking = {key: value for key, value in good.items() if key != "test"}
    (tmp_path / "lacking.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(lacking)}\n")
    with pytest.raises(MifyError, match=r"line 2: the field 'test' is missing"):
        humaneval(tmp_path / "lacking.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"task_id": ')
    with pytest.raises(MifyError, match=r"broken.jsonl is damaged"):
        humaneval(tmp_path / "broken.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(good).encode())[:-9])
    with pytest.raises(MifyError, match=r"cut.jsonl.gz is damaged"):
        humaneval(tmp_path / "cut.jsonl.gz")
    with pytest.raises(MifyError, match="does not exist"):
        read_jsonl(tmp_path / "nothing.jsonl", ())
    with pytest.raises(MifyError, match="line 1"):
        (tmp_path / "list.jsonl").write_text("[1]\n")
        read_jsonl(tmp_path / "list.jsonl", ("a",))


def test_tasks_by_name(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="'humanval' is unknown"):
        tasks_by_name(["humanval"], None, list)
    with pytest.raises(MifyError, match=r"mbpp needs the file mbpp.jsonl.gz"):
        tasks_by_name(["mbpp"], None, list)
    with pytest.raises(MifyError, match=r"mbpp.jsonl.gz is not in"):
        tasks_by_name(["mbpp"], tmp_path, list)
    named = tasks_by_name(["humaneval", "infilling", "bpb"], None, code_documents)
    assert [task.name for task in named] == ["humaneval", "infilling"]


def test_addresses_do_not_reach_the_records() -> None:
    assert without_addresses("<function f at 0x7f3c1a2b3c4d>") == "<function f at 0x…>"
    assert without_addresses("0xff") == "0xff"
