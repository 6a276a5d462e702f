"""Files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mify import MifyError
from mify.files import (
    atomic_file,
    atomic_folder,
    make_folder,
    read_json,
    remove_leftovers,
    sha256_file,
    text_lines,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["file.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for number in (1, 2):
        with atomic_folder(target) as temporary:
            (temporary / f"{number}.txt").write_text(str(number))
    assert [item.name for item in target.iterdir()] == ["2.txt"]
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        raise RuntimeError
    assert [item.name for item in target.iterdir()] == ["2.txt"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="disk is full.*file.txt"), atomic_file(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []
    with pytest.raises(PermissionError), atomic_file(tmp_path / "file.txt"):
        raise PermissionError(errno.EACCES, "denied")


def test_only_a_folder_of_its_own_kind_is_replaced(tmp_path: Path) -> None:
    """`--out` may name anything: a home folder, a run, a file."""

    def write(path: Path) -> None:
        with atomic_folder(path, replaces="config.json") as temporary:
            (temporary / "config.json").write_text("new")

    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("kept")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("absent", "empty", "absent"):
        write(tmp_path / name)
        assert (tmp_path / name / "config.json").read_text() == "new"
    before = sorted(os.listdir(tmp_path))
    for name, problem in (("notes", "something else"), ("run", "other folders"), ("file", "is a file")):
        with pytest.raises(MifyError, match=problem):
            write(tmp_path / name)
    for kept in ("notes/diary.txt", "run/config.json", "file"):
        assert (tmp_path / kept).read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MifyError, match="below cannot be written"), atomic_file(tmp_path / "file" / "below"):
        pass
    with pytest.raises(MifyError, match="below cannot be written"), atomic_folder(tmp_path / "file" / "below"):
        pass
    with pytest.raises(MifyError, match="below cannot be written"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(MifyError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": "é"})
    assert read_json(path) == {"a": "é", "b": 1}
    assert path.read_text().startswith('{\n  "a": "é"')
    path.write_text('{"a": ')
    with pytest.raises(MifyError, match=r"x\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(MifyError, match="does not exist"):
        read_json(tmp_path / "absent.json")


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "x") as temporary:
        (tmp_path / "killed").write_text(temporary.name)
        raise RuntimeError
    (tmp_path / (tmp_path / "killed").read_text()).write_text("")
    (tmp_path / ".y.a_3c5e7g.old").mkdir()
    theirs = {"keep.tmp", ".notes.tmp", ".vimrc.old", ".x.123.tmp", "killed"}
    for name in theirs:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == theirs


def test_a_line_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    """JSON leaves U+2028 and others as they are, where `str.splitlines` cuts."""
    path = tmp_path / "lines.jsonl"
    texts = ["a\u2028b", "c\x85d", "e\x1cf"]
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert [json.loads(line) for line in text_lines(path)] == texts
    path.write_text("a\n\nb")
    assert text_lines(path) == ["a", "", "b"]
    path.write_text("")
    assert text_lines(path) == []


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
