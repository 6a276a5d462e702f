"""Readers: every file is a document or a counted rejection, whatever it holds."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from identify.vendor.licenses import LICENSES

from mify.curation.documents import Document, Rejected, write_documents, write_rejected
from mify.curation.readers import Limits, decode, read_folder, read_inputs
from mify.errors import MifyError

MIT = dict(LICENSES)["MIT"]


def split(entries: object) -> tuple[dict[str, Document], dict[str, str]]:
    """(documents by repo/path, reasons of the rejected ones by repo/path)."""
    documents: dict[str, Document] = {}
    reasons: dict[str, str] = {}
    for entry in entries:  # type: ignore[attr-defined]
        if isinstance(entry, Rejected):
            assert entry.stage == "read"
            assert isinstance(json.loads(entry.evidence), dict)
            reasons[f"{entry.document.repo}/{entry.document.path}"] = entry.reason
        else:
            documents[f"{entry.repo}/{entry.path}"] = entry
    return documents, reasons


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b"x = 1\n", "x = 1\n"),
        (b"\xef\xbb\xbfx\r\n", "x\r\n"),
        ("ä".encode(), "ä"),
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"a\0b", "binary"),
        (b"caf\xe9", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\xff\xfeh\0i\0", "binary"),
    ],
)
def test_decode(data: bytes, result: str) -> None:
    found = decode(data)
    assert (found if isinstance(found, str) else found[0]) == result


def test_a_folder_with_all_kinds_of_files(tmp_path: Path) -> None:
    root = tmp_path / "project"
    files = {
        "a.py": b"x = 1\n",
        "empty.py": b"",
        "latin.py": "é".encode("latin-1"),
        "nul.c": b"a\0b",
        "logo.png": b"\x89PNG",
        "big.py": b"#" * 2000,
        "README.md": b"# Project\n",
        "sub/deep/b.go": b"package b\n",
        ".git/config": b"[core]\n",
        "__pycache__/a.pyc": b"\0",
        ".venv/lib/c.py": b"c = 1\n",
        "vendor/lib/v.py": b"v = 1\n",
        "LICENSE": MIT.encode(),
        "node_modules/m.js": b"m\n",
        "surrogate\udcff.py": b"s = 1\n",
        "env/pyvenv.cfg": b"home = /usr\n",
        "env/lib/e.py": b"e = 1\n",
        "build/b.py": b"b = 1\n",
    }
    for name, data in files.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    (root / "link.py").symlink_to(root / "a.py")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.py")
    documents, reasons = split(read_folder(root, Limits(max_file_bytes=1500)))
    assert reasons == {
        "project/empty.py": "empty",
        "project/latin.py": "not UTF-8",
        "project/nul.c": "binary",
        "project/logo.png": "binary",
        "project/big.py": "too large",
    }
    assert set(documents) == {
        "project/a.py",
        "project/README.md",
        "project/sub/deep/b.go",
        "project/vendor/lib/v.py",
        "project/LICENSE",
        "project/surrogate?.py",
        "project/build/b.py",
    }
    a = documents["project/a.py"]
    assert (a.source, a.license, a.language, a.domain) == ("project", "MIT", "python", "code")
    assert documents["project/README.md"].domain == "text"
    assert documents["project/vendor/lib/v.py"].license == "unknown"
    assert documents["project/sub/deep/b.go"].license == "MIT"


def test_repositories_inside_a_folder_have_their_own_name_and_license(tmp_path: Path) -> None:
    root = tmp_path / "all"
    for name, license in (("one", MIT), ("two", None)):
        (root / name / ".git").mkdir(parents=True)
        (root / name / "x.py").write_text("x = 1\n")
        if license:
            (root / name / "LICENSE").write_text(license)
    (root / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007")
    (root / "y.py").write_text("y = 1\n")
    documents, _ = split(read_folder(root))
    assert documents["all/one/x.py"].license == "MIT"
    assert documents["all/two/x.py"].license == "unknown"  # what lies above a repository does not speak for it
    assert documents["all/y.py"].license == "GPL-3.0-only"


def test_a_folder_inside_a_repository_finds_the_license_above(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "src" / "deep").mkdir(parents=True)
    (tmp_path / "repo" / "LICENSE").write_text(MIT)
    (tmp_path / "repo" / "src" / "deep" / "x.py").write_text("x = 1\n")
    for path in ("src", "src/deep", "src/deep/x.py"):
        (entry,) = read_inputs([tmp_path / "repo" / path])
        assert isinstance(entry, Document)
        assert entry.license == "MIT", path


def test_what_a_repository_only_houses_is_not_under_its_license(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "LICENSE").write_text(MIT)
    housed = ("env/lib/site-packages/numpy", ".venv/numpy", "node_modules/left-pad", "third_party/zlib/src")
    for path in housed:
        folder = tmp_path / "repo" / path
        folder.mkdir(parents=True)
        (folder / "x.py").write_text("x = 1\n")
    (tmp_path / "repo" / "env" / "pyvenv.cfg").touch()
    for path in housed:
        for given in (path, f"{path}/x.py"):
            (entry,) = read_inputs([tmp_path / "repo" / given])
            assert isinstance(entry, Document)
            assert entry.license == "unknown", given


def test_files_that_cannot_be_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "x.py").write_text("x = 1\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    (entry,) = read_folder(tmp_path)
    assert isinstance(entry, Rejected)
    assert (entry.reason, json.loads(entry.evidence)) == ("unreadable", {"error": "Permission denied"})


RECORDS = [
    {
        "content": "x = 1\n",
        "max_stars_repo_path": "a.py",
        "repo_name": "o/r",
        "max_stars_repo_licenses": ["MIT", "ISC"],
    },
    {"text": "some prose", "language": "Markdown", "license": "Apache 2.0", "domain": "math", "source": "web"},
    {"code": "int x;", "lang": "C++", "license": ["no such thing"]},
    {"text": ""},
    {"other": 1},
    {"text": 5},
    {"text": "\ud800"},
    {"text": "odd", "path": "\ud800", "repo": "\udfff", "license": 3, "language": ["c"], "domain": ["code"]},
]


def expected(name: str) -> tuple[dict[str, tuple[str, str, str, str]], dict[str, str]]:
    kept = {
        "o/r/a.py": ("data", "python", "ISC AND MIT", "code"),
        f"{name}/{name}:2": ("web", "markdown", "Apache-2.0", "math"),
        f"{name}/{name}:3": ("data", "cpp", "unknown", "code"),
        "?/?": ("data", "unknown", "unknown", "code"),
    }
    reasons = {
        f"{name}/{name}:4": "no text",
        f"{name}/{name}:5": "no text",
        f"{name}/{name}:6": "no text",
        f"{name}/{name}:7": "not UTF-8",
    }
    return kept, reasons


def table(documents: dict[str, Document]) -> dict[str, tuple[str, str, str, str]]:
    return {name: (item.source, item.language, item.license, item.domain) for name, item in documents.items()}


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "data" / f"d.jsonl{suffix}"
    path.parent.mkdir()
    data = "\n".join(map(json.dumps, RECORDS)).encode()
    if suffix == ".gz":
        data = gzip.compress(data)
    if suffix == ".zst":
        half = len(data) // 2  # two frames, as parallel compressors write
        data = pa.compress(data[:half], "zstd", asbytes=True) + pa.compress(data[half:], "zstd", asbytes=True)
    path.write_bytes(data)
    documents, reasons = split(read_inputs([path.parent]))
    assert (table(documents), reasons) == expected(path.name)
    path.write_bytes(data[: len(data) // 3] if suffix else b'{"text": ')
    if suffix:
        with pytest.raises(MifyError, match=r"d\.jsonl.* could not be read to its end"):
            list(read_inputs([path]))
    else:
        assert split(read_inputs([path]))[1] == {"d.jsonl/d.jsonl:1": "not JSON"}


def test_long_broken_and_odd_lines_are_counted_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    long = json.dumps({"text": "x" * 5000})
    lines = [long, '{"text": "a', "[1]", "", "\ufeff", "[" * 5000, json.dumps({"text": "last", "path": "a.txt"})]
    path.write_text("\n".join(lines))
    documents, reasons = split(read_inputs([path], Limits(max_line_bytes=1000)))
    assert reasons == {
        f"d.jsonl/d.jsonl:{line}": why
        for line, why in (
            (1, "too large"),
            (2, "not JSON"),
            (3, "not JSON"),
            (5, "not JSON"),
            (6, "too large"),
        )
    }
    assert documents["d.jsonl/a.txt"].text == "last"
    _, reasons = split(read_inputs([path], Limits(max_line_bytes=1_000_000, max_file_bytes=100)))
    assert reasons["d.jsonl/d.jsonl:1"] == "too large"
    assert reasons["d.jsonl/d.jsonl:6"] == "not JSON"


def test_parquet_of_others_and_ours(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(RECORDS[1:2]), folder / "a.parquet")
    documents, reasons = split(read_inputs([folder]))
    assert table(documents) == {"a.parquet/a.parquet:1": ("web", "markdown", "Apache-2.0", "math")}
    assert reasons == {}
    kept = [Document.create("x = 1\n", "code", "python", "MIT", "s", "r", "a.py")]
    write_documents(folder / "a.parquet", kept)
    assert list(read_inputs([folder])) == kept
    write_rejected(folder / "a.parquet", [Rejected.create(kept[0], "quality", "r", {})])
    with pytest.raises(MifyError, match="holds 'rejected-documents'"):
        list(read_inputs([folder]))
    pq.write_table(pa.table({"other": ["x"]}), folder / "a.parquet")
    with pytest.raises(MifyError, match="has no column of text"):
        list(read_inputs([folder]))
    (folder / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MifyError, match="not a whole Parquet file"):
        list(read_inputs([folder]))


def test_binary_columns_are_decoded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": [b"x = 1\n", b"\xff"], "path": ["a.py", "b.py"]}), tmp_path / "a.parquet")
    documents, reasons = split(read_inputs([tmp_path / "a.parquet"]))
    assert set(documents) == {"a.parquet/a.py"}
    assert reasons == {"a.parquet/b.py": "not UTF-8"}


def test_missing_paths_and_single_files(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="absent does not exist"):
        list(read_inputs([tmp_path / "absent"]))
    (tmp_path / "x.py").write_text("x = 1\n")
    (entry,) = read_inputs([tmp_path / "x.py"])
    assert isinstance(entry, Document)
    assert (entry.path, entry.language) == ("x.py", "python")
    assert str(tmp_path) not in "".join((entry.source, entry.repo, entry.path))


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "c/z.py", "c/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = [entry.path for entry in read_folder(tmp_path) if isinstance(entry, Document)]
    assert paths == ["a.py", "b.py", "c/a.py", "c/z.py"]


def test_deeply_nested_folders_are_read(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with open(os.open("x.py", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as file:
            file.write("x = 1\n")
    finally:
        os.close(here)
    try:
        (entry,) = read_folder(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree recurses
    assert isinstance(entry, Document)
    assert entry.path == "d/" * 1200 + "x.py"
