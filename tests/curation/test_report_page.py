"""The page of a curation: whole, self-contained, equal for equal reports, and nothing of a document is markup in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mify.curation.config import CurationConfig, DecontaminationRules, GuardRules, NearDuplicateRules, config_to_toml
from mify.curation.documents import Document
from mify.curation.pipeline import CurationReport, curate
from mify.curation.report_page import _size, page
from mify.curation.tables import notes

VOID = {"meta", "line", "polyline", "br"}


class Reader(HTMLParser):
    """Every tag is closed by its own, and the text is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def document(text: str, path: str, language: str = "python", license: str = "MIT", source: str = "web") -> Document:
    return Document.create(text, "code", language, license, source, source, path)


def program(name: str) -> str:
    body = "    {n}_a = x * {i}\n    {n}_b = y - {n}_a\n    {n}_c = {n}_a * {n}_b\n    {n}_c += {i}\n    return {n}_c\n"
    return "import os\n\n\n" + "\n\n".join(f"def {name}_{i}(x, y):\n{body.format(n=name, i=i)}" for i in range(9))


@pytest.fixture
def report(tmp_path: Path) -> CurationReport:
    leak = "def sum_of_squares_of_primes(limit):\n    return sum(n * n for n in primes(limit) if n < '<script>')\n"
    (tmp_path / "bench.jsonl").write_text(
        json.dumps({"task_id": "T/1", "prompt": leak, "canonical_solution": "", "test": ""})
    )
    documents = [
        document(program("alpha"), "alpha.py"),
        document(program("alpha") + "print(1)\n", "near.py"),
        document(program("beta"), "beta.py", source="<b>odd & source</b>"),
        document(program("gamma"), "gpl.py", license="GPL-3.0-only"),
        document(program("delta") + leak, "<i>leak</i>.py"),
        document("import os\n", "short.py"),
        document("module M where\nmain = print 1\n" * 30, "m.hs", language="haskell"),
    ]
    config = CurationConfig(
        decontamination=DecontaminationRules(benchmarks=(str(tmp_path / "bench.jsonl"),)),
        guard=GuardRules(max_source_loss=1.0),
    )
    return curate(documents, tmp_path / "out", config)


def test_the_page_is_whole_and_needs_nothing_else(report: CurationReport) -> None:
    assert report.folder is not None
    html = (report.folder / "report.html").read_text(encoding="utf-8")
    found = read(html)
    assert found.addresses == []
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", html)
    assert html == page(json.loads((report.folder / "report.json").read_text()))
    text = " ".join(" ".join(found.text).split())
    totals = report.data["totals"]
    assert f"{totals['in']['documents']} documents" in text
    for wanted in (
        "license not allowed", "near duplicate 1", "opencoder_python/min_lines", "threshold 0.7: 0.99985",
        "dropped 1 with 1 task of bench", "sum_of_squares_of_primes", "task T/1", "haskell 1", "max_source_loss = 1.0",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_nothing_of_a_document_is_markup(report: CurationReport) -> None:
    html = page(report.data)
    assert "<script" not in html
    assert "<b>odd" not in html
    assert "&lt;b&gt;odd &amp; source&lt;/b&gt;" in html
    assert "&lt;i&gt;leak&lt;/i&gt;.py" in html


def test_the_configuration_on_the_page_is_the_one(report: CurationReport) -> None:
    found = read(page(report.data))
    shown = "".join(found.text)
    from mify.typed_tree import build

    assert config_to_toml(build(CurationConfig, report.data["config"])) in shown


def test_a_run_without_the_optional_stages(tmp_path: Path) -> None:
    config = CurationConfig(
        decontamination=DecontaminationRules(benchmarks=()), near_duplicates=NearDuplicateRules(enabled=False)
    )
    report = curate([document("x\n", "a.py")], tmp_path, config)
    text = " ".join(read(page(report.data)).text)
    assert "Near-duplicates were not looked for." in text
    assert "no benchmark was named" in text
    assert "polyline" not in page(report.data)


def test_notes_tell_what_a_search_without_verification_costs(tmp_path: Path) -> None:
    config = CurationConfig(
        decontamination=DecontaminationRules(benchmarks=()), near_duplicates=NearDuplicateRules(verify=False)
    )
    report = curate([document(program("alpha"), "a.py")], tmp_path, config).data
    (cost,) = [note for note in notes(report) if "not verified" in note]
    assert "standard error of 0.041" in cost
    crowded = {**report["near_duplicates"], "capped_buckets": 2, "skipped_pairs": 900, "estimated_lost_pairs": 3.4}
    said = notes({**report, "near_duplicates": crowded})
    assert any("2 crowded buckets" in note and "about 3 of 900 pairs" in note for note in said)


def test_the_terminal_shows_sources_and_languages(report: CurationReport) -> None:
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    report.print(console)
    text = console.export_text()
    for wanted in ("by source", "by language", "haskell", "composition", "Near-duplicates: 32 bands of 4"):
        assert wanted in text, wanted


def test_sizes() -> None:
    assert [_size(size) for size in (0, 999, 1800, 34_000, 999_600, 5_400_000, 2_000_000_000, 3 * 10**12)] == [
        "0 B", "999 B", "1.8 kB", "34 kB", "1 MB", "5.4 MB", "2 GB", "3.0 TB"
    ]  # fmt: skip
