"""What comes in and goes out: URLs, and bad input that is counted and named or a clear error, never lost."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sharded_corpus import OPEN, families, make

from mify.curation import locations
from mify.curation.documents import Document, Rejected, read_documents, read_rejected, write_documents, write_rejected
from mify.curation.outputs import OutputOptions
from mify.curation.pipeline import curate
from mify.curation.readers import Limits, list_pieces, read_inputs
from mify.curation.sharded.run import FileInputs, ShardOptions
from mify.errors import MifyError


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system behind memory://, emptied."""
    system = fsspec.filesystem("memory")
    for store in (system.store, system.pseudo_dirs):
        store.clear()
    yield system
    for store in (system.store, system.pseudo_dirs):
        store.clear()


def records(documents: list[Document]) -> bytes:
    rows = [
        {"text": d.text, "path": d.path, "repo": d.repo, "license": d.license, "source": d.source} for d in documents
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def files(paths: list[locations.Location], **options: Any) -> FileInputs:
    return FileInputs(list_pieces(paths), options.get("limits", Limits()), options.get("held_out", 0.0), 0)


def test_by_url_comes_what_comes_from_the_disk(memory: Any, tmp_path: Path) -> None:
    documents = families(20, 40, seed=3)
    data = {
        "a.jsonl": records(documents[:15]),
        "b.jsonl.gz": gzip.compress(records(documents[15:30])),
        "c.jsonl.zst": pa.compress(records(documents[30:40]), "zstd", asbytes=True),
    }
    (tmp_path / "in").mkdir()
    for name, content in data.items():
        (tmp_path / "in" / name).write_bytes(content)
    rows = [json.loads(line) for line in records(documents[40:50]).splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "d.parquet")
    write_documents(tmp_path / "in" / "e.parquet", documents[50:])
    for path in (tmp_path / "in").iterdir():
        memory.pipe(f"/bucket/in/{path.name}", path.read_bytes())
    by_path, by_url = list(read_inputs([tmp_path / "in"])), list(read_inputs(["memory://bucket/in"]))
    assert len(by_path) == 60
    assert by_path == by_url
    assert [*read_inputs(["memory://bucket/in/b.jsonl.gz"])] == [*read_inputs([tmp_path / "in" / "b.jsonl.gz"])]
    # And out again.
    local = curate(files([tmp_path / "in"], held_out=0.2), tmp_path / "out", OPEN)
    options = OutputOptions(files=1)
    remote = curate(files(["memory://bucket/in"], held_out=0.2), "memory://bucket/out", OPEN, output=options)
    assert remote.data == local.data
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "held_out.parquet" in names
    assert names == sorted(name.rpartition("/")[2] for name in memory.ls("/bucket/out", detail=False))
    for name in names:
        assert memory.cat(f"/bucket/out/{name}") == (tmp_path / "out" / name).read_bytes(), name
    # Another format takes the place of the files before.
    curate(files(["memory://bucket/in"]), "memory://bucket/out", OPEN, output=OutputOptions("jsonl", 2))
    kinds = ("clusters", "documents", "rejected")
    expected = {f"{kind}-{part}-of-00002.jsonl" for kind in kinds for part in ("00000", "00001")}
    found = {name.rpartition("/")[2] for name in memory.ls("/bucket/out", detail=False)}
    assert found == expected | {"report.html", "report.json"}


def test_urls_that_lead_nowhere_are_named(memory: Any) -> None:
    memory.pipe("/bucket/notes/thesis.tex", b"precious")
    for url, message in (
        ("memory://bucket/none", "neither a table nor a folder of nothing but tables"),
        ("memory://bucket/notes", "neither a table nor a folder of nothing but tables"),
        ("memory://bucket/none.jsonl", "does not exist"),
        ("nosuch://bucket/a.jsonl", "cannot be opened"),
    ):
        with pytest.raises(MifyError, match=message):
            list_pieces([url])
    with pytest.raises(MifyError, match=r"holds other files \(thesis.tex\)"):
        curate(families(2, 0, seed=1), "memory://bucket/notes", OPEN)
    assert memory.cat("/bucket/notes/thesis.tex") == b"precious"
    memory.pipe("/bucket/file", b"x")
    with pytest.raises(MifyError, match="is a file"):
        curate(families(2, 0, seed=1), "memory://bucket/file", OPEN)


def test_arguments_are_urls_or_paths() -> None:
    assert locations.located("s3://bucket/x") == "s3://bucket/x"
    assert locations.located("file:///x/y") == Path("/x/y")
    assert locations.located("x/y") == Path("x/y")
    assert locations.filename("s3://bucket/x/") == "x"
    assert locations.join("s3://bucket/x", "y") == "s3://bucket/x/y"


def test_pieces_change_when_their_files_do(tmp_path: Path) -> None:
    (tmp_path / "project" / "sub").mkdir(parents=True)
    (tmp_path / "project" / "a.py").write_text("x = 1\n")
    (tmp_path / "project" / "sub" / "b.py").write_text("x = 1\n")
    (first,) = list_pieces([tmp_path / "project"])
    assert (first.kind, first.num_bytes) == ("folder", 12)
    assert list_pieces([tmp_path / "project"]) == [first]
    (tmp_path / "project" / "sub" / "b.py").write_text("x = 10\n")
    (second,) = list_pieces([tmp_path / "project"])
    assert second.stamp != first.stamp


def test_bad_records_are_counted_and_named_and_the_totals_hold(tmp_path: Path) -> None:
    good = families(8, 0, seed=4)
    lines = [
        records(good[:4]),
        b'{"text": "caf\xe9 is no UTF-8", "path": "latin.txt"}\n',
        b'{"text": "cut sh\n',
        b'{"text": "\\ud800 alone", "path": "surrogate.txt"}\n',
        b'{"text": "", "path": "empty.txt"}\n',
        b'{"text": " \\n", "path": "blank.txt"}\n',
        b'{"text": "word", "path": "one.txt"}\n',
        b"[1, 2]\n",
        b"\n",
        records(good[2:4]),
        b'{"text": "' + b"long " * 4000 + b'", "path": "long.txt"}\n',
        records(good[4:]),
    ]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    inputs = files([tmp_path / "in.jsonl"], limits=Limits(max_file_bytes=5000, max_line_bytes=10_000))
    for partitions in (1, 4):
        report = curate(inputs, tmp_path / "out", OPEN, shards=ShardOptions(partitions)).data
        rejected = list(read_rejected(tmp_path / "out" / "rejected.parquet"))
        kept = list(read_documents(tmp_path / "out" / "documents.parquet"))
        assert Counter(item.reason for item in rejected) == {
            "not JSON": 3,  # of these one is not UTF-8: json says which byte
            "not UTF-8": 1,
            "no text": 1,
            "empty": 1,
            "read twice": 2,
            "too large": 1,
        }
        assert {document.path for document in kept} == {*(document.path for document in good), "one.txt"}
        totals = report["totals"]
        assert totals["in"]["documents"] == 18 == len(kept) + len(rejected)
        assert totals["rejected"]["documents"] == 9
        (large,) = (item for item in rejected if item.reason == "too large")
        assert json.loads(large.evidence) == {"bytes": len(lines[10]), "limit": 10_000}
        reads = [row for row in report["stages"] if row["stage"] == "read"]
        assert reads[0]["rejected"]["documents"] == 9


def test_of_two_documents_of_one_id_the_first_that_was_read_stays(tmp_path: Path) -> None:
    for name, license in (("b", "MIT"), ("a", "ISC"), ("c", "Apache-2.0")):
        record = {"text": "the same text", "path": "x.txt", "repo": "r", "source": "s", "license": license}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
    for order in ("abc", "cab"):
        paths: list[locations.Location] = [tmp_path / f"{name}.jsonl" for name in order]
        curate(files(paths), tmp_path / "out", OPEN)
        (kept,) = read_documents(tmp_path / "out" / "documents.parquet")
        assert kept.license == {"a": "ISC", "c": "Apache-2.0"}[order[0]]
        rejected = list(read_rejected(tmp_path / "out" / "rejected.parquet"))
        assert [json.loads(item.evidence) for item in rejected] == [{"kept": kept.id}] * 2
        assert {item.document.license for item in rejected} == {"MIT", "ISC", "Apache-2.0"} - {kept.license}


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_tables_stop_the_run_with_their_name(tmp_path: Path, workers: int) -> None:
    good = families(30, 0, seed=5)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(records(good))
    write_documents(folder / "b.parquet", good)
    whole = (folder / "b.parquet").read_bytes()
    for name, data, message in (
        ("b.parquet", whole[: len(whole) // 2], "b.parquet is not a whole Parquet file"),
        ("b.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "b.parquet is not a whole Parquet file"),
        ("c.jsonl.gz", gzip.compress(records(good))[:200], "c.jsonl.gz could not be read to its end"),
        ("c.jsonl.zst", pa.compress(records(good), "zstd", asbytes=True)[:200], "zst could not be read to its end"),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(MifyError, match=message):
            curate(files([folder / "a.jsonl", folder / name]), tmp_path / "out", OPEN, num_workers=workers)
        (folder / name).unlink()
        assert not (tmp_path / "out").exists()
    write_rejected(folder / "b.parquet", [Rejected.create(good[0], "quality", "r", {})])
    with pytest.raises(MifyError, match="holds 'rejected-documents'"):
        curate(files([folder / "b.parquet"]), tmp_path / "out", OPEN)
    pq.write_table(pa.table({"other": ["x"]}), folder / "b.parquet")
    with pytest.raises(MifyError, match="has no column of text"):
        curate(files([folder / "b.parquet"]), tmp_path / "out", OPEN)


def test_ids_that_are_no_hashes_are_refused(tmp_path: Path) -> None:
    good = make("a text", "a.txt")
    for id in ("x", "Z" * 64, good.id.upper(), good.id[:-1] + " "):
        other = Document(id, *(getattr(good, name) for name in Document.__slots__[1:]))
        with pytest.raises(MifyError, match="is no SHA-256"):
            curate([good, other], tmp_path / "out", OPEN)


def test_a_text_that_is_not_what_its_hash_says_is_refused(tmp_path: Path) -> None:
    for digest in ("0" * 64, "no hash"):
        with pytest.raises(MifyError, match="is not the one its hash is of"):
            curate([replace(make("a text", "a.txt"), text_sha256=digest)], tmp_path / "out", OPEN)


def test_a_line_of_a_gigabyte_is_counted_and_not_held(tmp_path: Path) -> None:
    """The line is a hole in a sparse file; a process of its own tells its largest memory."""
    good = records(families(4, 0, seed=6))
    with (tmp_path / "in.jsonl").open("wb") as file:
        file.write(good[: good.index(b"\n") + 1])
        file.seek(1 << 30, 1)
        file.write(b"\n" + good[good.index(b"\n") + 1 :])
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom mify.curation.readers import read_inputs\n"
        "from mify.curation.documents import Document\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = list(read_inputs([Path(sys.argv[1])]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(isinstance(item, Document) for item in found), after - before)\n"
        "print(*(item.evidence for item in found if not isinstance(item, Document)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "in.jsonl")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    counts, evidence = run.stdout.splitlines()
    documents, kilobytes = map(int, counts.split())
    assert documents == 4
    assert json.loads(evidence) == {"bytes": (1 << 30) + 1, "limit": Limits().max_line_bytes}
    # The limit of a line, twice, and what reading takes.
    assert kilobytes < (4 * Limits().max_line_bytes >> 10)
