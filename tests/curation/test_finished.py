"""A finished curation is read back alike in every format, cut or whole, local or by URL; damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify.curation.config import CurationConfig, DecontaminationRules, MixtureRules
from mify.curation.documents import Document
from mify.curation.explain import explain
from mify.curation.finished import read_dropped, read_kept
from mify.curation.outputs import OUTPUT_FORMATS, OutputOptions
from mify.curation.pipeline import curate, load_report
from mify.errors import MifyError

CONFIG = CurationConfig(decontamination=DecontaminationRules(benchmarks=()), mixture=MixtureRules(1, 0, 0))


def program(name: str) -> str:
    body = "    {n}_a = x * {i}\n    {n}_b = y - {n}_a\n    {n}_c = {n}_a * {n}_b\n    {n}_c += {i}\n    return {n}_c\n"
    return "import os\n\n\n" + "\n\n".join(f"def {name}_{i}(x, y):\n{body.format(n=name, i=i)}" for i in range(9))


def documents() -> list[Document]:
    texts = {f"{name}.py": program(name) for name in ("alpha", "beta", "gamma", "delta", "epsilon")}
    texts |= {"near.py": program("alpha") + "print(1)\n", "short.py": "import os\n"}
    return [Document.create(text, "code", "python", "MIT", "web", "r", path) for path, text in texts.items()]


HELD = [Document.create(program("zeta"), "code", "python", "MIT", "web", "r", "zeta.py")]


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("form", OUTPUT_FORMATS)
def test_every_format_is_read_back(tmp_path: Path, form: str, files: int) -> None:
    output = OutputOptions(form, files)  # type: ignore[arg-type]
    report = curate(documents(), tmp_path / "out", CONFIG, held_out=HELD, output=output)
    kept = [(document.path, outcome) for document, outcome in read_kept(tmp_path / "out", report.data)]
    dropped = {item.document.path: item.stage for item in read_dropped(tmp_path / "out", report.data)}
    assert ("zeta.py", "kept, held out") in kept
    assert len(kept) == 6
    # Which of the two near copies stays is decided by their ids.
    assert dropped.pop("short.py") == "quality"
    assert list(dropped.values()) == ["near duplicates"]
    assert set(dropped) < {"alpha.py", "near.py"}
    (gone,) = explain(tmp_path / "out", next(iter(dropped)))
    assert gone.reason == "near duplicate"
    (stays,) = explain(tmp_path / "out", gone.evidence["kept"])
    assert [path for path, _ in stays.removed_for_it] == [f"r/{gone.document.path}"]
    assert gone.group == stays.group == (min(gone.document.id, stays.document.id), 2)
    assert "one of a group of 2 near-duplicates" in "\n".join(gone.lines())
    (alone,) = explain(tmp_path / "out", "beta.py")
    assert alone.group is None


def test_a_curation_at_a_url_is_explained() -> None:
    pytest.importorskip("fsspec")
    place = "memory://finished/out"
    curate(documents(), place, CONFIG, held_out=HELD)
    assert load_report(place)["totals"]["kept"]["documents"] == 6
    (short,) = explain(place, "short.py")
    assert (short.stage, short.reason) == ("quality", "opencoder_python/min_lines")
    with pytest.raises(MifyError, match="does not exist"):
        explain("memory://finished/absent", "short.py")


def test_damage_is_named(tmp_path: Path) -> None:
    curate(documents(), tmp_path, CONFIG, output=OutputOptions("jsonl"))
    file = tmp_path / "documents.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(MifyError, match=r"documents.jsonl: line \d+ is damaged"):
        explain(tmp_path, "short.py")
    file.unlink()
    with pytest.raises(MifyError, match=r"documents.jsonl could not be read"):
        explain(tmp_path, "short.py")
