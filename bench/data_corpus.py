"""The corpus of `mify bench data`: this machine's Python installation, whole files, as code, text and mathematics."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mify.errors import MifyError

# Packages whose sources are mathematics.
MATHEMATICS = ("sympy", "mpmath", "networkx", "scipy")
PROSE = (".md", ".rst", ".txt")


@dataclass(frozen=True)
class Text:
    """A document as `mify.data.shards.write_shards` takes it."""

    text: str
    domain: str
    language: str

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(f"{self.domain}\n{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    documents: list[Text]

    @cached_property
    def num_bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.documents)

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    def of(self, domain: str) -> Corpus:
        return Corpus([document for document in self.documents if document.domain == domain])

    def sample(self, num_bytes: int) -> Corpus:
        """The first documents, up to about `num_bytes`."""
        taken: list[Text] = []
        for document in self.documents:
            if num_bytes <= 0:
                break
            taken.append(document)
            num_bytes -= len(document.text.encode())
        return Corpus(taken)

    @property
    def name(self) -> str:
        """What was measured on: two runs with one hash had the same input."""
        digest = hashlib.sha256("".join(document.id for document in self.documents).encode()).hexdigest()
        return f"{len(self.documents):,} documents, {self.num_bytes / 1e6:.1f} MB, corpus {digest[:12]}"


def build(num_bytes: int, seed: int, folder: Path | None = None) -> Corpus:
    """Up to `num_bytes` of different non-empty UTF-8 files in a seeded order."""
    found = sorted(_files(folder))
    random.Random(seed).shuffle(found)
    documents: dict[str, Text] = {}
    size = 0
    for path in found:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if not text or size >= num_bytes:
            continue
        parts = set(path.parts)
        domain = "text" if path.suffix in PROSE else "math" if parts & set(MATHEMATICS) else "code"
        document = Text(text, domain, "python" if path.suffix == ".py" else "text")
        if document.id not in documents:
            documents[document.id] = document
            size += len(text.encode())
    if not documents:
        raise MifyError(f"{folder or 'the Python installation'} has no text files", "give --data FOLDER with some")
    return Corpus(list(documents.values()))


def _files(folder: Path | None) -> Iterator[Path]:
    paths = sysconfig.get_paths()
    for root in [folder] if folder else [Path(paths["stdlib"]), Path(paths["purelib"])]:
        for path in root.rglob("*"):
            if path.suffix in (".py", *PROSE) and path.is_file() and not path.is_symlink():
                yield path
