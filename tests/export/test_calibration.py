"""What calibration reads and records: the inputs of linear layers, text from files, folders, documents and shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mify.errors import MifyError
from mify.export.calibration import calibration_sequences, linear_inputs
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def sequences(tokenizer: Tokenizer, corpus: list[str]) -> list[list[int]]:
    ids = tokenizer.encode(corpus[0])
    return [ids[start : start + 120] for start in range(0, 600, 120)]


def test_statistics_are_those_of_the_inputs(make_model: Callable[..., Model], sequences: list) -> None:
    model = make_model()
    seen = linear_inputs(model, sequences, samples=50)
    caught: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    linear_inputs(model, sequences)
    handle.remove()
    everything = torch.cat(caught)
    found = seen["model.layers.1.mlp.down_proj.weight"]
    assert found.tokens == len(everything) == sum(map(len, sequences))
    assert found.amax == float(everything.abs().max())
    assert torch.allclose(found.mean, everything.abs().mean(0), rtol=1e-5)
    assert torch.equal(found.rows, everything[:: len(everything) // 50][:50])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_calibration_text_is_read_from_files_folders_and_documents(
    tmp_path: Path, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    from mify.curation.documents import Document, write_documents

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.py").write_text(corpus[0])
    (tmp_path / "folder" / "a.py").write_text("x = 1\n")
    (tmp_path / "folder" / "c.bin").write_bytes(b"\xff\xfe\x00")
    found = calibration_sequences(tmp_path / "folder", tokenizer, context=64, tokens=200)
    ids = tokenizer.encode(corpus[0])
    short = tokenizer.encode("x = 1\n")
    assert found[:3] == [short, ids[:64], ids[64:128]]  # beginnings first, then what follows them
    assert sum(map(len, found)) == 200
    everything = calibration_sequences(tmp_path / "folder", tokenizer, context=64, tokens=1_000_000)
    assert [token for sequence in everything[1:] for token in sequence] == ids
    assert calibration_sequences(tmp_path / "folder" / "b.py", tokenizer, context=999, tokens=40) == [
        tokenizer.encode(corpus[0])[:40]
    ]
    document = Document.create("y = 2\n", "code", "python", "MIT", "test", "r", "p.py")
    write_documents(tmp_path / "documents.parquet", [document])
    assert calibration_sequences(tmp_path / "documents.parquet", tokenizer, context=9) == [tokenizer.encode("y = 2\n")]
    for wrong, named in ((tmp_path / "no", "does not exist"), (tmp_path / "folder" / "c.bin", "not UTF-8")):
        with pytest.raises(MifyError, match=named):
            calibration_sequences(wrong, tokenizer, context=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MifyError, match="holds no text"):
        calibration_sequences(tmp_path / "empty", tokenizer, context=9)


def test_token_shards_are_read_and_those_of_another_tokenizer_refused(
    tmp_path: Path, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    from mify.curation.documents import Document
    from mify.data.shard_writer import write_shards

    texts = ["x = 1\n", corpus[0][:400], "def f():\n    return 2\n"]
    documents = [Document.create(text, "code", "python", "MIT", "t", "r", f"{i}.py") for i, text in enumerate(texts)]
    write_shards(documents, tokenizer, tmp_path / "shards")
    found = calibration_sequences(tmp_path / "shards", tokenizer, context=64, tokens=10_000)
    beginnings = [[*tokenizer.encode(text), tokenizer.eot_id][:64] for text in texts]
    assert sorted(found[:3]) == sorted(beginnings)
    other = train_tokenizer(corpus, 500)
    with pytest.raises(MifyError, match="written by another tokenizer"):
        calibration_sequences(tmp_path / "shards", other, context=64)
