"""`mify tokenizer` and `mify tokenize` from a corpus file to a document shown back."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mify.cli.app import app
from mify.curation.documents import Document, write_documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [f"def function_{i}(x):\n    return x + {i}\n" for i in range(20)]
    path = tmp_path / "documents.parquet"
    write_documents(
        path, [Document.create(t, "code", "python", "MIT", "test", "r", f"{i}.py") for i, t in enumerate(texts)]
    )
    return path


def test_a_corpus_becomes_shards_that_show_their_documents(corpus: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    trained = run(
        app, ["tokenizer", "train", "--corpus", str(corpus), "--vocab-size", "400", "--out", str(tmp_path / "t")]
    )
    assert trained.exit_code == 0, trained.output
    assert "400 ids" in trained.output
    arguments = ["tokenize", "--corpus", str(corpus), "--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "s")]
    assert "20 documents" in run(app, arguments).output
    assert "1 shards were there already" in run(app, arguments).output
    shown = run(app, ["tokenize", "--inspect", str(tmp_path / "s"), "--document", "0", "--verify"])
    assert shown.exit_code == 0, shown.output
    assert "def function_" in shown.output
    assert "<|endoftext|>" in shown.output
    assert "verified" in shown.output


def test_shards_of_repositories_with_nodes_are_shown(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tree_sitter_python")
    run = CliRunner().invoke
    run(app, ["tokenizer", "train", "--corpus", str(corpus), "--vocab-size", "400", "--out", str(tmp_path / "t")])
    arguments = ["tokenize", "--corpus", str(corpus), "--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "s")]
    written = run(app, [*arguments, "--repositories", "--syntax", "--threads", "2"])
    assert "1 documents" in written.output, written.output
    shown = run(app, ["tokenize", "--inspect", str(tmp_path / "s"), "--document", "0"]).output
    assert "<|repo_name|>r<|file_sep|>0.py\ndef function_0(x):" in shown
    assert "syntax nodes; grammars: " in shown
    assert "tree-sitter-python" in shown
    key = shown.split("id ")[1][:16]
    for identity in (key, key + "0" * 48):
        assert run(app, ["tokenize", "--inspect", str(tmp_path / "s"), "--document", identity]).output == shown
    for wrong, message in (("f" * 16, "no document whose id"), ("words", "is no number"), ("z" * 16, "is no number")):
        result = run(app, ["tokenize", "--inspect", str(tmp_path / "s"), "--document", wrong])
        assert result.exit_code == 2
        assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize"], "--corpus, --tokenizer, --out not given"),
        (["tokenize", "--inspect", "nowhere"], "nowhere"),
        (["tokenizer", "show", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_ends_in_a_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
