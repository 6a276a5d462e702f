"""The machine's own Python installation as a corpus: real code, documentation and mathematics, without a network.

- code: the standard library and installed packages.
- math: the mathematical packages (sympy, mpmath, networkx), half of it prose where their docstrings suffice.
- text: half READMEs, package descriptions, .md/.rst/.txt, half the long docstrings of files that were not drawn as
  code, so that no docstring is trained on twice.

Which files are drawn is a keyed hash of their names, which are held out one of their contents: the same packages give
the same documents, byte for byte, on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mify.curation.docstrings import docstring_prose
from mify.curation.documents import Document, Rejected
from mify.curation.held_out import held_out_hashes, keyed_hash
from mify.curation.installed_files import (
    EXCLUDED_DISTRIBUTIONS,
    Installation,
    InstalledFile,
    description,
    installed_files,
    normalised_name,
)
from mify.curation.languages import UNKNOWN, domain_of, language_of
from mify.curation.readers import decode
from mify.curation.workers import Workers, chunks, workers

SOURCE = "python-installation"
MATH_DISTRIBUTIONS = frozenset(["sympy", "mpmath", "networkx"])
SHARES = {"code": 0.78, "text": 0.12, "math": 0.10}
# Of the text, at most this much comes from files of prose while docstrings suffice (one package's manual would else be
# most of it); of the mathematics, this much is prose.
PROSE_SHARE = 0.5

Progress = Callable[[str, int, int], None]


@dataclass
class Collection:
    """What was collected.

    Args:
        documents: for training, as read, not filtered.
        held_out: split off before docstrings were extracted: no document of `documents` comes from a file of these.
        rejected: files that could not be read as text, with stage "read".
        report: per domain what was wanted, drawn, and held out, in documents and bytes.
    """

    documents: list[Document] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> list[Document | Rejected]:
        """What `curate` takes: the documents for training and the rejected ones, so that its totals count both."""
        return [*self.documents, *self.rejected]


@dataclass(frozen=True)
class CollectionConfig:
    """What is collected.

    Args:
        max_bytes: bytes of all documents together, held-out ones included.
        held_out_fraction: share of each domain's contents that is held out.
        held_out_min_documents: at least so many in each domain (at most half of what it has).
        seed: keys the draw and the split.
        max_file_bytes: a larger file is rejected as "too large".
    """

    max_bytes: int = 48_000_000
    held_out_fraction: float = 0.02
    held_out_min_documents: int = 40
    seed: int = 0
    max_file_bytes: int = 1_000_000


DEFAULTS = CollectionConfig()


def collect(
    installation: Installation | None = None,
    config: CollectionConfig = DEFAULTS,
    *,
    excluded: frozenset[str] = EXCLUDED_DISTRIBUTIONS,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> Collection:
    """Collects about `config.max_bytes` of documents in 78:12:10, as far as the installation has them.

    Args:
        installation: whose files; default: the running interpreter's.
        config: budget, split and seed.
        excluded: normalised names of distributions that are left out.
        num_workers: processes; the result does not depend on it.
        progress: called as progress("collect", bytes so far, max_bytes).

    Raises:
        ValueError: `max_bytes` or `held_out_fraction` is out of range.
    """
    if config.max_bytes < 1:
        raise ValueError(f"max_bytes = {config.max_bytes}: at least 1 is expected")
    files = installed_files(installation or Installation.current(), excluded)
    with workers(num_workers) as pool:
        return _Collector(config, pool, progress).run(files)


class _Drawn(NamedTuple):
    """A document and the hash of the file's content it was made from: the split is by the latter."""

    document: Document
    content: str
    location: str


class _Collector:
    def __init__(self, config: CollectionConfig, pool: Workers, progress: Progress | None) -> None:
        self.config = config
        self.pool = pool
        self.progress = progress
        self.rejected: list[Rejected] = []
        self.refused: set[str] = set()
        self.bytes = 0

    def run(self, files: Sequence[InstalledFile]) -> Collection:
        python: dict[str, list[InstalledFile]] = {"code": [], "math": []}
        prose: dict[str, list[InstalledFile]] = {"text": [], "math": []}
        for file in sorted(files, key=lambda file: keyed_hash(self.config.seed, "draw", file.repo, file.path)):
            mathematical = normalised_name(file.repo) in MATH_DISTRIBUTIONS
            if file.num_bytes > self.config.max_file_bytes:
                domain = "math" if mathematical else "code" if file.kind == "python" else "text"
                evidence = {"bytes": file.num_bytes, "limit": self.config.max_file_bytes}
                self.rejected.append(_reject(file, domain, "too large", evidence))
            elif file.kind == "python":
                python["math" if mathematical else "code"].append(file)
            else:
                prose["math" if mathematical else "text"].append(file)
        budget = {domain: int(self.config.max_bytes * share) for domain, share in SHARES.items()}

        half = {domain: int(budget[domain] * PROSE_SHARE) for domain in ("text", "math")}

        code = self._draw(python["code"], "code", budget["code"])
        text = self._draw(prose["text"], "text", half["text"])
        text += self._docstrings(self._others(python["code"], code), "text", budget["text"] - _bytes(text))
        text += self._draw(self._others(prose["text"], text), "text", budget["text"] - _bytes(text))
        math = self._draw(python["math"], "math", half["math"])
        math += self._draw(prose["math"], "math", budget["math"] - _bytes(math))
        math += self._docstrings(self._others(python["math"], math), "math", budget["math"] - _bytes(math))
        math += self._draw(self._others(python["math"], math), "math", budget["math"] - _bytes(math))

        pools = {"code": code, "text": text, "math": math}
        held = self._held_out(pools)
        collection = Collection(rejected=self.rejected)
        for drawn in [*code, *text, *math]:
            (collection.held_out if drawn.content in held else collection.documents).append(drawn.document)
        again = 0
        if (lacking := budget["text"] - _bytes(text)) > 0:
            # A small installation: all its files are drawn as code, so their docstrings serve twice. Only now, when the
            # held-out files are off.
            train = {drawn.location for drawn in code if drawn.content not in held}
            repeated = self._docstrings([file for file in python["code"] if file.location in train], "text", lacking)
            collection.documents += [drawn.document for drawn in repeated]
            again = _bytes(repeated)
        collection.report = self._report(files, budget, collection, again)
        return collection

    def _draw(self, files: Iterable[InstalledFile], domain: str, budget: int) -> list[_Drawn]:
        """Whole files as documents, in the given order, until the budget is reached."""
        drawn: list[_Drawn] = []
        total = 0
        for file in files:
            if total >= budget:
                break
            text = self._read(file, domain)
            if text is None:
                continue
            language = "python"
            if file.kind == "metadata":
                text, language = description(text)
            elif file.kind == "prose":
                language = language_of(file.path)
            if not text.strip():
                continue  # a package without a description is no document
            document = Document.create(text, domain, language, file.license, SOURCE, file.repo, file.path)
            drawn.append(_Drawn(document, document.text_sha256, file.location))
            total += document.num_bytes
            self._advance(document.num_bytes)
        return drawn

    def _docstrings(self, files: Iterable[InstalledFile], domain: str, budget: int) -> list[_Drawn]:
        """The long docstrings of each file as one document, in the given order, until the budget is reached."""
        drawn: list[_Drawn] = []
        total = 0
        if budget <= 0:
            return drawn
        for results in self.pool.map(_extract, chunks(files, 64)):
            for file, prose, content, problem in results:
                if total >= budget:
                    return drawn
                if problem is not None:
                    self._refuse(file, domain, problem)
                elif prose:
                    path = f"{file.path}#docstrings"
                    document = Document.create(prose, domain, "restructuredtext", file.license, SOURCE, file.repo, path)
                    drawn.append(_Drawn(document, content, file.location))
                    total += document.num_bytes
                    self._advance(document.num_bytes)
        return drawn

    def _others(self, files: Iterable[InstalledFile], drawn: Iterable[_Drawn]) -> list[InstalledFile]:
        """The files that were neither drawn nor refused."""
        taken = self.refused.union(item.location for item in drawn)
        return [file for file in files if file.location not in taken]

    def _read(self, file: InstalledFile, domain: str) -> str | None:
        text = _read_text(file)
        if isinstance(text, str):
            return text
        self._refuse(file, domain, text)
        return None

    def _refuse(self, file: InstalledFile, domain: str, problem: tuple[str, dict[str, Any]]) -> None:
        self.refused.add(file.location)
        self.rejected.append(_reject(file, domain, *problem))

    def _held_out(self, pools: dict[str, list[_Drawn]]) -> frozenset[str]:
        held: set[str] = set()
        for drawn in pools.values():
            held |= held_out_hashes(
                (item.content for item in drawn),
                fraction=self.config.held_out_fraction,
                min_count=self.config.held_out_min_documents,
                seed=self.config.seed,
            )
        return frozenset(held)

    def _advance(self, num_bytes: int) -> None:
        self.bytes += num_bytes
        if self.progress is not None:
            self.progress("collect", min(self.bytes, self.config.max_bytes), self.config.max_bytes)

    def _report(
        self, files: Sequence[InstalledFile], budget: dict[str, int], collection: Collection, again: int
    ) -> dict[str, Any]:
        domains: dict[str, Any] = {}
        for domain in SHARES:
            train = [document for document in collection.documents if document.domain == domain]
            held_out = [document for document in collection.held_out if document.domain == domain]
            domains[domain] = {
                "wanted_bytes": budget[domain],
                "train": {"documents": len(train), "bytes": sum(document.num_bytes for document in train)},
                "held_out": {"documents": len(held_out), "bytes": sum(document.num_bytes for document in held_out)},
            }
        return {
            "source": SOURCE,
            "max_bytes": self.config.max_bytes,
            "seed": self.config.seed,
            "installed": {
                "distributions": len({file.repo for file in files}),
                "files": len(files),
                "bytes": sum(file.num_bytes for file in files),
            },
            "docstring_bytes_of_training_files": again,
            "domains": domains,
        }


def _bytes(drawn: Iterable[_Drawn]) -> int:
    return sum(item.document.num_bytes for item in drawn)


def _reject(file: InstalledFile, domain: str, reason: str, evidence: dict[str, Any]) -> Rejected:
    language = "python" if file.kind == "python" else language_of(file.path)
    document = Document.create("", domain, language, file.license, SOURCE, file.repo, file.path)
    return Rejected.create(document, "read", reason, evidence)


def _read_text(file: InstalledFile) -> str | tuple[str, dict[str, Any]]:
    try:
        return decode(Path(file.location).read_bytes())
    except OSError as error:
        return "unreadable", {"error": error.strerror or type(error).__name__}


_Extracted = tuple[InstalledFile, str, str, tuple[str, dict[str, Any]] | None]


def _extract(files: list[InstalledFile]) -> list[_Extracted]:
    """(file, prose of its docstrings, content hash, problem) of each file: what a worker does."""
    results: list[_Extracted] = []
    for file in files:
        text = _read_text(file)
        if isinstance(text, str):
            content = Document.create(text, domain_of("python"), "python", UNKNOWN, "", "", "").text_sha256
            results.append((file, docstring_prose(text), content, None))
        else:
            results.append((file, "", "", text))
    return results
