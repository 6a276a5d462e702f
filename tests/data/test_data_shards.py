"""Token shards: what was written comes back, resumes, is the same every time, and is refused when it is not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_oracles import MakeShards, TextOf

from mify.data.shards import TokenShards, document_key, write_shards
from mify.errors import MifyError
from mify.tokenizer import Tokenizer, train_tokenizer


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_documents_come_back(sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    documents = [TextOf(text, ("code", "text", "math")[i % 3]) for i, text in enumerate(sources[:30])]
    shards = make_shards(documents, shard_bytes=100_000)
    assert len(shards.tokens) > 3
    assert shards.dtype == np.uint16
    assert shards.num_documents == 30
    for index, document in enumerate(documents):
        ids = shards.document(index).tolist()
        assert ids == [*tokenizer.encode(document.text), tokenizer.eot_id]
        assert shards.byte_lengths[index] == len(document.text.encode())
        assert shards.domain_names[shards.domains[index]] == document.domain
        assert int(shards.document_ids[index]) == int(document.id[:16], 16)
    assert shards.num_tokens == sum(map(len, shards.tokens)) == shards.offsets[-1]


def test_a_vocabulary_beyond_65536_takes_four_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    far = {"id": 70_000, "content": "<|far|>", "single_word": False, "lstrip": False, "rstrip": False}
    added = [*tokenizer.definition["added_tokens"], {**far, "normalized": False, "special": True}]
    wide = Tokenizer({**tokenizer.definition, "added_tokens": added})
    write_shards([TextOf("x = 1\n")], wide, tmp_path / "wide")
    shards = TokenShards(tmp_path / "wide", wide)
    assert shards.dtype == np.uint32
    assert shards.document(0).tolist() == [*tokenizer.encode("x = 1\n"), 0]


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    report = write_shards([TextOf("a"), TextOf(""), TextOf("b", "text")], tokenizer, tmp_path / "s")
    assert (report.documents, report.empty, report.tokens, report.bytes) == (2, 1, 4, 2)
    assert report.tokens_by_domain == {"code": 2, "text": 2, "math": 0}
    assert report.bytes_per_token == 1.0


def test_the_result_does_not_depend_on_threads_or_interruptions(
    sources: list[str], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = [TextOf(text) for text in sources[:20]]
    write_shards(documents, tokenizer, tmp_path / "whole", shard_bytes=80_000)
    expected = files_of(tmp_path / "whole")
    write_shards(documents, tokenizer, tmp_path / "threads", shard_bytes=80_000, threads=3)
    assert files_of(tmp_path / "threads") == expected

    class Killed(Exception):
        pass

    def kill(_: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise Killed

    with pytest.raises(Killed):
        write_shards(documents, tokenizer, tmp_path / "killed", shard_bytes=80_000, progress=kill)
    assert not (tmp_path / "killed" / "meta.json").exists()
    (tmp_path / "killed" / ".shard-00003.abc.tmp").mkdir()
    report = write_shards(documents, tokenizer, tmp_path / "killed", shard_bytes=80_000, threads=2)
    assert report.shards_kept == 3
    assert files_of(tmp_path / "killed") == expected


def test_changed_documents_are_written_again(sources: list[str], tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = [TextOf(text) for text in sources[:9]]
    write_shards(first, tokenizer, tmp_path / "s", shard_bytes=60_000)
    redacted = [*first[:8], TextOf("# nothing left\n")]
    report = write_shards(redacted, tokenizer, tmp_path / "s", shard_bytes=60_000)
    write_shards(redacted, tokenizer, tmp_path / "fresh", shard_bytes=60_000)
    assert report.shards_kept > 0
    assert files_of(tmp_path / "s") == files_of(tmp_path / "fresh")


def test_a_key_is_the_beginning_of_the_id() -> None:
    assert document_key("00000000000000ff" + "0" * 48) == 255
    assert document_key("not hexadecimal") == document_key("not hexadecimal") != document_key("another")


def test_nothing_to_write_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MifyError, match="no text to tokenize"):
        write_shards([], tokenizer, tmp_path / "s")
    with pytest.raises(MifyError, match="no text to tokenize"):
        write_shards([TextOf("")], tokenizer, tmp_path / "s")


def test_an_unknown_domain_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MifyError, match="'poetry'"):
        write_shards([TextOf("roses", "poetry")], tokenizer, tmp_path / "s")


def test_another_tokenizer_is_refused(
    sources: list[str], make_shards: MakeShards, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    make_shards(["x = 1\n"])
    other = train_tokenizer(sources[:3], 400)
    with pytest.raises(MifyError, match="another tokenizer"):
        TokenShards(tmp_path / "shards", other)


def test_folders_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="no folder of token shards"):
        TokenShards(tmp_path / "nowhere")
    with pytest.raises(MifyError, match=r"meta\.json does not exist"):
        TokenShards(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": "something else"}')
    with pytest.raises(MifyError, match="does not hold token shards"):
        TokenShards(tmp_path)


def test_an_unknown_version_is_refused_by_name(make_shards: MakeShards, tmp_path: Path) -> None:
    make_shards(["x = 1\n"])
    path = tmp_path / "shards" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(MifyError, match="version 99"):
        TokenShards(tmp_path / "shards")


@pytest.mark.parametrize("name", ["tokens", "offsets", "document_ids", "byte_lengths", "domains"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_damaged_files_are_named(name: str, damage: str, make_shards: MakeShards, tmp_path: Path) -> None:
    make_shards([f"value = {i}\n" for i in range(50)])
    path = tmp_path / "shards" / "shard-00000" / f"{name}.bin"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-2])
    elif damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(MifyError, match=rf"{name}\.bin is damaged"):
        TokenShards(tmp_path / "shards")


def test_a_shard_of_another_run_is_refused(make_shards: MakeShards, tmp_path: Path) -> None:
    make_shards(["x = 1\n"])
    make_shards(["y = 2\n"], "other")
    shutil.rmtree(tmp_path / "shards" / "shard-00000")
    shutil.copytree(tmp_path / "other" / "shard-00000", tmp_path / "shards" / "shard-00000")
    with pytest.raises(MifyError, match="shard-00000 is damaged"):
        TokenShards(tmp_path / "shards")


def test_ids_beyond_the_vocabulary_are_refused(make_shards: MakeShards, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Even where the hashes fit, as after a hand-made shard."""
    shards = make_shards(["x = 1\n"])
    meta = json.loads((tmp_path / "shards" / "meta.json").read_text())
    (tmp_path / "shards" / "meta.json").write_text(json.dumps({**meta, "vocab_size": 200}))
    with pytest.raises(MifyError, match="beyond the vocabulary of 200"):
        TokenShards(tmp_path / "shards")
    assert TokenShards(tmp_path / "shards", verify=False).num_tokens == shards.num_tokens


def test_a_document_number_out_of_range_is_refused(make_shards: MakeShards) -> None:
    shards = make_shards(["x = 1\n"])
    for index in (-1, 1):
        with pytest.raises(MifyError, match="no document"):
            shards.document(index)
