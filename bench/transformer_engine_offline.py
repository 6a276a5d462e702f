"""Transformer Engine on a GPU machine without a package index: its files in parts, its torch extension built there.

Where packages can be downloaded (standard library only; pip is called):

    python transformer_engine_offline.py pack FOLDER --version 2.20.2 --cuda 13 --part-mib 50 [--python 3.12]

downloads the core wheel (about 276 MB), the source of the torch extension, and the small packages both import, and
cuts what is larger than a part. FOLDER/manifest.json holds the size and SHA-256 of every file and part, so parts can
travel by any way, in any order. On the GPU machine, with torch, nvcc, cuDNN's headers and a C++ compiler:

    python transformer_engine_offline.py install FOLDER

joins and verifies the parts, installs the core wheel, and builds the extension (33 C++ files; some minutes) against
the torch that is there: no index, no build isolation, no dependencies pulled. `mify doctor` then says whether it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT, VERSION = "mify-offline-packages", 1
MANIFEST = "manifest.json"
# What the core and the extension import besides torch.
SMALL = ("pydantic", "importlib-metadata", "packaging", "einops", "onnxscript", "onnx", "pyyaml")
# These would pull torch, or a second cuDNN.
ALONE = ("nvdlfw-inspect", "nvidia-cudnn-frontend")
BUILD = ("setuptools", "wheel", "ninja", "pybind11", "cmake")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_CHUNK = 1 << 20


def cut(file: Path, folder: Path, part_bytes: int) -> dict[str, Any]:
    """Cuts `file` into parts of at most `part_bytes` in `folder` (one part: a whole copy), and says what they are.

    Returns:
        {"name", "bytes", "sha256", "parts": [{"name", "bytes", "sha256"}, …]}
    """
    if part_bytes < 1:
        raise ValueError(f"part_bytes is {part_bytes}; it must be at least 1")
    whole = hashlib.sha256()
    parts: list[dict[str, Any]] = []
    with file.open("rb") as source:
        while True:
            path = folder / f"{file.name}.part{len(parts):03d}"
            digest, size = hashlib.sha256(), 0
            with path.open("wb") as target:
                while size < part_bytes and (block := source.read(min(_CHUNK, part_bytes - size))):
                    for it in (digest, whole):
                        it.update(block)
                    size += target.write(block)
            if not size and parts:
                path.unlink()
                break
            parts.append({"name": path.name, "bytes": size, "sha256": digest.hexdigest()})
            if size < part_bytes:
                break
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": whole.hexdigest(), "parts": parts}


def join(entry: dict[str, Any], folder: Path, out: Path) -> Path:
    """The file of a manifest's entry, from its parts in `folder`. Raises SystemExit naming a part that is not right."""
    target = out / entry["name"]
    whole = hashlib.sha256()
    with target.open("wb") as file:
        for part in entry["parts"]:
            path = folder / part["name"]
            if not path.is_file():
                raise SystemExit(f"{path} is missing: bring it again")
            digest = hashlib.sha256()
            with path.open("rb") as source:
                while block := source.read(_CHUNK):
                    for it in (digest, whole):
                        it.update(block)
                    file.write(block)
            if digest.hexdigest() != part["sha256"]:
                raise SystemExit(
                    f"{path} has changed on the way ({path.stat().st_size} bytes, {part['bytes']} expected)"
                )
    if whole.hexdigest() != entry["sha256"]:
        raise SystemExit(f"{target} is not what was packed, though its parts are: pack again")
    return target


def pack(folder: Path, *, version: str, cuda: int, python: str, part_mib: int) -> None:
    """Downloads and cuts. Whole files lie in folder/whole, parts beside the manifest."""
    whole = folder / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--dest", str(whole)]
    wheels = ["--only-binary=:all:", "--python-version", python]
    wheels += [word for platform in PLATFORMS for word in ("--platform", platform)]
    core = [f"transformer-engine=={version}", f"transformer-engine-cu{cuda}=={version}"]
    _run([*pip, "--no-deps", *wheels, *core])
    _run([*pip, "--no-deps", *wheels, *ALONE])
    _run([*pip, *wheels, *SMALL, *BUILD])
    download_source("transformer-engine-torch", version, whole, index_url())
    entries = [cut(file, folder, part_mib << 20) for file in sorted(whole.iterdir())]
    manifest = {"format": FORMAT, "version": VERSION, "engine": version, "cuda": cuda, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    count = sum(len(entry["parts"]) for entry in entries)
    print(f"{folder}: {len(entries)} files in {count} parts, {sum(entry['bytes'] for entry in entries) / 1e6:.0f} MB")


def index_url() -> str:
    """The package index that pip is configured for."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("PIP_INDEX_URL") or configured or "https://pypi.org/simple"


def download_source(name: str, version: str, folder: Path, index: str) -> Path:
    """A source archive from a package index (PEP 503), unread: `pip download` would run its setup.py, which asks for
    CUDA. Raises SystemExit where the index lacks it, or its SHA-256 is another.
    """
    page = f"{index.rstrip('/')}/{name}/"
    file = f"{name.replace('-', '_')}-{version}.tar.gz"
    with urllib.request.urlopen(page) as answer:
        text = answer.read().decode("utf-8")
    found = re.search(rf'href="([^"#]*{re.escape(file)})(?:#sha256=([0-9a-f]{{64}}))?', text)
    if found is None:
        raise SystemExit(f"{page} has no {file}: give another --version")
    target = folder / file
    with urllib.request.urlopen(urllib.parse.urljoin(page, found[1])) as answer, target.open("wb") as out:
        shutil.copyfileobj(answer, out)
    if found[2] and hashlib.sha256(target.read_bytes()).hexdigest() != found[2]:
        target.unlink()
        raise SystemExit(f"{file} is not what {page} announces: try again")
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a packed folder. Raises SystemExit where it is none."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise SystemExit(f"{path} is no {FORMAT} of version {VERSION}")
    return dict(manifest)


def install(folder: Path) -> None:
    """Joins, verifies, installs the wheels and builds the torch extension."""
    manifest = read_manifest(folder)
    out = folder / "joined"
    out.mkdir(exist_ok=True)
    files = [join(entry, folder, out) for entry in manifest["files"]]
    pip = [sys.executable, "-m", "pip", "install", "--no-index"]
    alone = tuple(name.replace("-", "_") for name in ALONE)
    wheels = [file for file in files if file.suffix == ".whl" and file.name.startswith(("transformer_engine", *alone))]
    sources = [file for file in files if file.name.endswith(".tar.gz")]
    # By name: what the machine has already, numpy above all, stays as it is.
    _run([*pip, "--find-links", str(out), *SMALL, *BUILD])
    _run([*pip, "--no-deps", *map(str, wheels)])
    _run([*pip, "--no-deps", "--no-build-isolation", *map(str, sources)])
    check = "import transformer_engine.pytorch as te; print(te.is_fp8_available(return_reason=True))"
    _run([sys.executable, "-c", check])


def _run(command: list[str]) -> None:
    print("+", " ".join(command), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"the command above ended with {done.returncode}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="download and cut, where packages can be downloaded")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--version", default="2.20.2", help="of Transformer Engine")
    packing.add_argument("--cuda", type=int, choices=(12, 13), default=13, help="as in torch.version.cuda")
    packing.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of the GPU machine")
    packing.add_argument("--part-mib", type=int, default=50, help="the size of a part")
    commands.add_parser("install", help="join and build, on the GPU machine").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "pack":
        pack(given.folder, version=given.version, cuda=given.cuda, python=given.python, part_mib=given.part_mib)
    else:
        install(given.folder)


if __name__ == "__main__":
    main()
