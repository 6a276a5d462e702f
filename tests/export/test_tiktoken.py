"""The vocabulary in tiktoken's form: the same ids, or a refusal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("tiktoken")

from mify.curation.documents import Document, write_documents
from mify.errors import MifyError
from mify.export.tiktoken import export_tiktoken, load_tiktoken
from mify.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:30]]


@pytest.fixture(scope="module")
def tokenizer(sources: list[str]) -> Tokenizer:
    return train_tokenizer(sources[:20], 1200)


def test_the_ids_are_the_same_after_saving_and_loading(
    sources: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert export_tiktoken(tokenizer, tmp_path, sources[:20]) == 20
    encoding = load_tiktoken(tmp_path)
    odd = "naïve 中文 🙂 'ſ I'LL \r\n\t x<|fim_prefix|>"
    for text in [*sources[20:], odd]:
        ids = tokenizer.encode(text)
        assert encoding.encode_ordinary(text) == ids
        assert encoding.decode(ids) == text
    assert encoding.encode("<|fim_prefix|>", allowed_special="all") == [tokenizer.fim_prefix_id]
    assert encoding.n_vocab == tokenizer.vocab_size
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export_tiktoken(tokenizer, tmp_path, sources[:2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_vocabulary_on_which_the_two_differ_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """tiktoken joins "ab" and "c" to "abc" though no merge lists that pair."""
    model = tokenizer.definition["model"]
    known = set(model["vocab"])
    left, middle, right = next(
        (a, b, c) for a in "QXZJK" for b in "qxzjk" for c in "QXZJK" if not {a + b, b + c, a + b + c} & known
    )
    size = len(model["vocab"])
    vocab = {**model["vocab"], left + middle: size, middle + right: size + 1, left + middle + right: size + 2}
    merges = [*model["merges"], [left, middle], [middle, right], [left, middle + right]]
    other = Tokenizer({**tokenizer.definition, "model": {**model, "vocab": vocab, "merges": merges}})
    word = left + middle + right
    assert other.encode(word) == [size, vocab[right]]
    with pytest.raises(MifyError, match=f"other ids than the tokenizer for '{word}"):
        export_tiktoken(other, tmp_path, ["fine\n", f"{word}\n"])
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(tokenizer: Tokenizer, sources: list[str], tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="no text"):
        export_tiktoken(tokenizer, tmp_path, [])
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    with pytest.raises(MifyError, match="qwen2"):
        export_tiktoken(Tokenizer({**tokenizer.definition, "pre_tokenizer": pre}), tmp_path, sources[:1])
    export_tiktoken(tokenizer, tmp_path, sources[:1])
    (tmp_path / "vocabulary.tiktoken").write_text("IQ== x\n")
    with pytest.raises(MifyError, match="line 1 is damaged"):
        load_tiktoken(tmp_path)
    (tmp_path / "encoding.json").write_text('{"format": "other"}')
    with pytest.raises(MifyError, match="'other'"):
        load_tiktoken(tmp_path)


def test_the_command(tokenizer: Tokenizer, sources: list[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mify.cli.app import app

    tokenizer.save(tmp_path / "t")
    documents = [Document.create(t, "code", "python", "MIT", "s", "r", f"{i}.py") for i, t in enumerate(sources[:3])]
    write_documents(tmp_path / "c.parquet", documents)
    arguments = ["--corpus", str(tmp_path / "c.parquet"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["tokenizer", "tiktoken", str(tmp_path / "t"), *arguments])
    assert result.exit_code == 0, result.output
    assert "the same ids on 3 documents" in result.output
