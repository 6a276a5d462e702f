"""The demo's `--post` stages on a miniature corpus and an untaught model: what they make, and that they resume."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mify.cli.demo.charts import post_training
from mify.cli.demo.pipeline import Stage, Stamp, run_stages
from mify.cli.demo.post_stages import PostConfig, post_stages
from mify.cli.demo.summary import _post
from mify.config import ModelConfig
from mify.curation.documents import Document, write_documents
from mify.eval.sandbox import sandbox_kind
from mify.export.hf import export_hf
from mify.model import Model
from mify.post.docstring_tasks import docstring_tasks
from mify.tokenizer import train_tokenizer

SMALL = PostConfig(functions=12, specs=12, tasks=16, held_out=4, pairs=6, sft_steps=4, dpo_steps=2, grpo_steps=1)


def source(start: int, count: int) -> str:
    functions = (
        f'def add_{n}(x, y={n}):\n    """Adds {n} to the number that is given. More.\n\n    Long.\n    """\n'
        f"    return x + y + {n}\n\n\n"
        for n in range(start, start + count)
    )
    return "import os\n\n\n" + "".join(functions)


def document(name: str, text: str, language: str = "python") -> Document:
    return Document.create(text=text, domain="code", language=language, license="MIT", source="t", repo="r", path=name)


def documents(*counts: tuple[str, int, int]) -> list[Document]:
    return [document(name, source(start, count)) for name, start, count in counts]


def corpus(folder: Path) -> dict[str, Any]:
    (folder / "corpus").mkdir(parents=True)
    write_documents(folder / "corpus" / "documents.parquet", documents(("a.py", 0, 10), ("b.py", 10, 10)))
    write_documents(folder / "corpus" / "held_out.parquet", documents(("c.py", 30, 8)))
    return {}


def base(folder: Path) -> dict[str, Any]:
    tokenizer = train_tokenizer([source(0, 20)], 500)
    tokenizer.save(folder / "tokenizer")
    model = Model(ModelConfig("base", 1, 32, 2, 1, 16, 48, tokenizer.vocab_size, 512), seed=2)
    model.tokenizer = tokenizer
    export_hf(model, folder / "runs" / "demo")
    return {}


def stages() -> list[Stage]:
    return [
        Stage("curate", "Curate", {}, (), ("corpus",), lambda folder, report: corpus(folder)),
        Stage("train", "Train", {}, (), ("runs", "tokenizer"), lambda folder, report: base(folder)),
        *post_stages(SMALL),
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Stamp]]:
    folder = tmp_path_factory.mktemp("post")
    return folder, run_stages(stages(), folder, Console(file=io.StringIO()))


def test_functions_are_asked_by_their_docstrings() -> None:
    found = list(docstring_tasks([document("a.py", source(3, 2)), document("b.c", "int x;", "c")]))
    assert [task.question for task in found] == [
        f"def add_{n}(x, y={n})\nAdds {n} to the number that is given." for n in (3, 4)
    ]
    assert found[0].answer == "def add_3(x, y=3):\n    return x + y + 3"
    assert not list(docstring_tasks([document("a.py", "def f(:\n")]))


def test_every_stage_makes_what_the_report_shows(done: tuple[Path, dict[str, Stamp]]) -> None:
    folder, stamps = done
    assert stamps["instructions"].summary["functions"] == 12
    assert stamps["sft"].summary["bits_after"] < stamps["sft"].summary["bits_before"]
    assert [step for step, _ in stamps["dpo"].summary["curve"]] == [1, 2]
    pairs = (folder / "post" / "pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["chosen"] != json.loads(line)["rejected"] for line in pairs)
    post = _post(stamps)
    assert [row[0] for row in post.rows] == ["SFT", "DPO", "GRPO"]
    if sandbox_kind().confined:
        assert set(post.solved) == {"before", "after"}
        assert post.example is not None
    post_training(post.panels, post.solved, folder / "post.png")
    assert (folder / "post.png").stat().st_size > 5000


def test_a_second_run_does_nothing_again(done: tuple[Path, dict[str, Stamp]]) -> None:
    folder, stamps = done
    shown = io.StringIO()
    again = run_stages(stages(), folder, Console(file=shown, width=200))
    assert {name: stamp.outputs for name, stamp in again.items()} == {n: stamp.outputs for n, stamp in stamps.items()}
    assert _post(again) == _post(stamps)
    assert shown.getvalue().count("done before") == 6
