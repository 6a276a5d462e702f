"""Repository-level context: the files of a repository as one document.

    <|repo_name|>NAME<|file_sep|>PATH\\nCODE<|file_sep|>PATH\\nCODE…<|endoftext|>

StarCoder 2's layout (arXiv 2402.19173). FIM permutes one of the files and moves it to the end, behind all the others,
so that the middle is written with the whole repository in view; its path stays in front of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from mify.data.shard_writer import TextDocument
from mify.special_tokens import FILE_SEP, REPO_NAME


class RepositoryFile(TextDocument, Protocol):
    """What is read of a document that is a file (`mify.curation.documents.Document` has it)."""

    @property
    def source(self) -> str: ...
    @property
    def repo(self) -> str: ...
    @property
    def path(self) -> str: ...


@dataclass(frozen=True, slots=True)
class File:
    """A file in a repository document."""

    path: str
    text: str
    language: str

    @property
    def shown(self) -> str:
        """What stands behind its `<|file_sep|>`."""
        return f"{self.path}\n{self.text}"


@dataclass(frozen=True)
class RepositoryDocument:
    """A document as `write_shards` takes it, whose `parts` carry the separators."""

    id: str
    repo: str
    files: tuple[File, ...]
    domain: str = "code"
    language: str = ""

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Pairs of a special token and the text behind it."""
        return [(REPO_NAME, self.repo), *((FILE_SEP, file.shown) for file in self.files)]

    @cached_property
    def text(self) -> str:
        return "".join(text for _, text in self.parts)


def repository_documents(
    documents: Iterable[RepositoryFile], *, max_bytes: int = 1 << 20, min_files: int = 2
) -> Iterator[RepositoryFile | RepositoryDocument]:
    """Joins the code files of each repository, in the order of their paths; everything else comes as it is.

    The result does not depend on the order of `documents`, except that what is not joined keeps it.

    Args:
        max_bytes: of a joined document; a larger repository becomes several, cut between files.
        min_files: a repository with fewer files of code stays as it is.
    """
    repositories: dict[tuple[str, str], list[RepositoryFile]] = {}
    for document in documents:
        if document.domain == "code" and document.repo and document.text:
            repositories.setdefault((document.source, document.repo), []).append(document)
        else:
            yield document
    for key in sorted(repositories):
        files = sorted(repositories[key], key=lambda file: (file.path, file.id))
        if len(files) < min_files:
            yield from files
            continue
        for group in _parts_of(files, max_bytes):
            yield _joined(key, group)


def _parts_of(files: list[RepositoryFile], max_bytes: int) -> Iterator[list[RepositoryFile]]:
    group: list[RepositoryFile] = []
    size = 0
    for file in files:
        length = len(file.text.encode(errors="surrogatepass"))
        if group and size + length > max_bytes:
            yield group
            group, size = [], 0
        group.append(file)
        size += length
    yield group


def _joined(key: tuple[str, str], group: list[RepositoryFile]) -> RepositoryDocument:
    identity = hashlib.sha256(b"repository\n")
    for name in (*key, *(file.id for file in group)):
        identity.update(f"{len(name.encode())}:{name}".encode())
    files = tuple(File(file.path, file.text, file.language) for file in group)
    languages = {file.language for file in group}
    return RepositoryDocument(
        identity.hexdigest(), key[1], files, language=languages.pop() if len(languages) == 1 else ""
    )
