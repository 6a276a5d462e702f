"""Parts of a package: any size, joined to the same bytes, damage named. What pip does is not run here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mify.bench import transformer_engine_offline as offline


def make(folder: Path, size: int) -> Path:
    file = folder / "core-1.0-py3-none-any.whl"
    file.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    return file


@pytest.mark.parametrize(("size", "part", "count"), [(0, 10, 1), (9, 10, 1), (10, 10, 1), (25, 10, 3), (30, 10, 3)])
def test_parts_join_to_the_file(tmp_path: Path, size: int, part: int, count: int) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "joined").mkdir()
    file = make(tmp_path, size)
    entry = offline.cut(file, tmp_path / "parts", part)
    assert len(entry["parts"]) == len(list((tmp_path / "parts").iterdir())) == count
    assert all(one["bytes"] <= part for one in entry["parts"])
    assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    joined = offline.join(entry, tmp_path / "parts", tmp_path / "joined")
    assert joined.name == file.name
    assert joined.read_bytes() == file.read_bytes()


def test_a_part_that_is_missing_or_changed_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    entry = offline.cut(make(tmp_path, 25), tmp_path / "parts", 10)
    second = tmp_path / "parts" / entry["parts"][1]["name"]
    second.write_bytes(b"0" * 10)
    with pytest.raises(SystemExit, match="part001 has changed on the way"):
        offline.join(entry, tmp_path / "parts", tmp_path)
    second.unlink()
    with pytest.raises(SystemExit, match="part001 is missing"):
        offline.join(entry, tmp_path / "parts", tmp_path)


def make_index(folder: Path, content: bytes, digest: str | None = None) -> str:
    """A package index as files, with one source archive."""
    page = folder / "index" / "transformer-engine-torch"
    page.mkdir(parents=True)
    name = "transformer_engine_torch-2.20.2.tar.gz"
    (page / name).write_bytes(content)
    digest = digest or hashlib.sha256(content).hexdigest()
    link = f'<a href="{name}#sha256={digest}">{name}</a>'
    # What urllib reads of a folder's address is a file, so the page gets the name that the address has.
    (page / "index.html").write_text(link)
    return (folder / "index").as_uri()


@pytest.fixture(autouse=True)
def _pages(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = offline.urllib.request.urlopen
    monkeypatch.setattr(
        offline.urllib.request, "urlopen", lambda url: opened(url + "index.html" if url.endswith("/") else url)
    )


def test_a_source_archive_is_checked(tmp_path: Path) -> None:
    index = make_index(tmp_path, b"source", digest="0" * 64)
    with pytest.raises(SystemExit, match=r"2\.20\.2\.tar\.gz is not what"):
        offline.download_source("transformer-engine-torch", "2.20.2", tmp_path, index)
    assert not list(tmp_path.glob("*.tar.gz"))
    with pytest.raises(SystemExit, match=r"has no transformer_engine_torch-9\.9\.tar\.gz"):
        offline.download_source("transformer-engine-torch", "9.9", tmp_path, index)


def test_packing_downloads_cuts_and_installing_joins_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str]) -> None:
        ran.append(command)
        if "download" in command:
            whole = Path(command[command.index("--dest") + 1])
            for name in ("transformer_engine_cu13-2.whl", "einops-1.whl"):
                (whole / name).write_bytes(name.encode() * 100_000)

    index = make_index(tmp_path, b"transformer_engine_torch" * 160_000)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setattr(offline, "_run", run)
    offline.main(["pack", str(tmp_path / "box"), "--part-mib", "1", "--python", "3.12"])
    downloads = [command for command in ran if "download" in command]
    assert any("transformer-engine-cu13==2.20.2" in command for command in downloads)
    assert all("--python-version" in command for command in downloads)
    manifest = json.loads((tmp_path / "box" / "manifest.json").read_text())
    assert [len(entry["parts"]) for entry in manifest["files"]] == [2, 3, 4]
    ran.clear()
    offline.main(["install", str(tmp_path / "box")])
    small, core, extension, check = ran
    assert all("--no-index" in command for command in (small, core, extension))
    assert "einops" in small
    assert "--no-deps" in core
    assert "--no-deps" in extension
    assert core[-1].endswith("transformer_engine_cu13-2.whl")
    assert extension[-1].endswith("transformer_engine_torch-2.20.2.tar.gz")
    assert "--no-build-isolation" in extension
    assert "is_fp8_available" in check[-1]


@pytest.mark.parametrize("content", [None, {}, {"format": "mify-offline-packages", "version": 2}])
def test_another_manifest_is_refused(tmp_path: Path, content: Any) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="is no mify-offline-packages of version 1"):
        offline.install(tmp_path)
