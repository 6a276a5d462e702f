"""Documents: identity, files sorted and byte-identical, and errors for what is no documents file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.curation import documents as documents_module
from mify.curation.documents import (
    FIELDS,
    Document,
    Rejected,
    file_format,
    read_documents,
    read_rejected,
    write_documents,
    write_rejected,
)
from mify.errors import MifyError


def make(text: str = "x = 1\n", path: str = "a.py", **changes: str) -> Document:
    fields = {"domain": "code", "language": "python", "license": "MIT", "source": "s", "repo": "r", **changes}
    return Document.create(text, path=path, **fields)


def test_identity_is_over_source_repo_path_and_text_and_nothing_else() -> None:
    assert make().id == make(license="Apache-2.0", domain="math", language="text").id
    ids = {make().id, make(text="x = 2\n").id, make(path="b.py").id, make(source="t").id, make(repo="q").id}
    assert len(ids) == 5


def test_identity_frames_its_fields() -> None:
    assert make(source="ab", repo="c").id != make(source="a", repo="bc").id


def test_identity_is_the_stated_hash() -> None:
    digest = hashlib.sha256()
    for field in (b"s", b"r", b"a.py", "ä".encode()):
        digest.update(len(field).to_bytes(8, "little") + field)
    document = make("ä")
    assert document.id == digest.hexdigest()
    assert document.text_sha256 == hashlib.sha256("ä".encode()).hexdigest()
    assert document.num_bytes == 2


def test_redacted_text_keeps_the_id_and_changes_the_hash() -> None:
    changed = make().with_text("y = 1\n")
    assert changed.id == make().id
    assert changed.text_sha256 == hashlib.sha256(b"y = 1\n").hexdigest()


def test_unknown_domain_and_lone_surrogates_are_refused() -> None:
    with pytest.raises(ValueError, match="domain = 'prose'"):
        make(domain="prose")
    with pytest.raises(UnicodeEncodeError):
        make("\ud800")


texts = st.text(st.characters(codec="utf-8"), max_size=200)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=20))
def test_what_is_written_is_read_sorted_by_id(tmp_path_factory: pytest.TempPathFactory, pairs: list) -> None:
    path = tmp_path_factory.mktemp("documents") / "d.parquet"
    written = [make(text, path=name) for text, name in pairs]
    write_documents(path, written)
    assert list(read_documents(path)) == sorted(written, key=lambda document: document.id)


def test_order_of_the_input_does_not_change_the_file(tmp_path: Path) -> None:
    written = [make(path=f"{index}.py") for index in range(50)]
    write_documents(tmp_path / "a.parquet", written)
    write_documents(tmp_path / "b.parquet", iter(reversed(written)))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_row_groups_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "ROW_GROUP_BYTES", 1000)
    written = [make("x" * 400, path=f"{index}") for index in range(10)]
    write_documents(tmp_path / "d.parquet", [*written, make("y" * 5000)])
    with pq.ParquetFile(tmp_path / "d.parquet") as file:
        rows = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    assert sum(rows) == 11
    assert max(rows) <= 2
    assert len(list(read_documents(tmp_path / "d.parquet"))) == 11


def test_columns_format_and_version_are_those_of_the_contract(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.parquet", [make()])
    schema = pq.read_schema(tmp_path / "d.parquet")
    assert tuple(schema.names) == FIELDS
    assert schema.metadata[b"mify.format"] == b"documents"
    assert schema.metadata[b"mify.version"] == b"1"
    assert file_format(tmp_path / "d.parquet") == "documents"


def test_rejected_documents_carry_stage_reason_and_evidence(tmp_path: Path) -> None:
    item = Rejected.create(make(), "quality", "max_lines", {"value": 3, "limit": 2})
    assert json.loads(item.evidence) == {"limit": 2, "value": 3}
    write_rejected(tmp_path / "r.parquet", [item])
    assert list(read_rejected(tmp_path / "r.parquet")) == [item]
    with pytest.raises(MifyError, match="holds 'rejected-documents', not 'documents'"):
        list(read_documents(tmp_path / "r.parquet"))


def test_an_empty_file_is_legal(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.parquet", [])
    assert list(read_documents(tmp_path / "d.parquet")) == []


def _rewrite(path: Path, **changes: object) -> None:
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, **changes.pop("metadata", {})}  # type: ignore[dict-item]
    if "drop" in changes:
        table = table.drop_columns([changes["drop"]])
    if "reverse" in changes:
        table = table.take(pa.array(range(len(table) - 1, -1, -1)))
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_what_is_not_a_documents_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    with pytest.raises(MifyError, match="does not exist"):
        list(read_documents(path))
    path.write_bytes(b"PAR1 but no Parquet")
    with pytest.raises(MifyError, match="d.parquet is not a whole Parquet file"):
        list(read_documents(path))
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(MifyError, match="holds 'no mify format'"):
        list(read_documents(path))


def test_truncated_unsorted_newer_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    written = [make(path=f"{index}.py") for index in range(20)]
    write_documents(path, written)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MifyError, match="not a whole Parquet file"):
        list(read_documents(path))
    for change, message in (
        ({"metadata": {b"mify.version": b"2"}}, "version '2'; this mify reads version 1"),
        ({"drop": "license"}, "has no column 'license' of strings"),
        ({"reverse": True}, "not sorted by id"),
    ):
        write_documents(path, written)
        _rewrite(path, **change)
        with pytest.raises(MifyError, match=message):
            list(read_documents(path))


def test_a_flipped_byte_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    written = [make(f"text {index} " * 50, path=f"{index}.py") for index in range(20)]
    write_documents(path, written)
    whole = path.read_bytes()
    expected = list(read_documents(path))
    failed = 0
    for place in range(4, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert list(read_documents(path)) == expected
        except MifyError:
            failed += 1
    assert failed > 50
