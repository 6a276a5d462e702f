"""Documents into token shards: in parallel, atomically, to be continued after a kill. `shard_format` says what is
written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mify.data.shard_format import ARRAYS, DOMAINS, FORMAT, SYNTAX_ARRAYS, VERSION, document_key
from mify.errors import MifyError
from mify.files import atomic_folder, make_folder, read_json, remove_leftovers, sha256_file, write_json
from mify.special_tokens import language_token
from mify.tokenizer import Tokenizer

ENCODE_AT_ONCE = 256


class TextDocument(Protocol):
    """What `write_shards` reads of a document (`mify.curation.documents.Document` has it).

    A document may have `parts` besides: pairs of a special token's name (or "") and the text behind it, as
    `mify.data.repositories.RepositoryDocument` has; its `text` is then that of the parts joined.
    """

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def language(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ShardsReport:
    """What was written: totals, tokens per domain, UTF-8 bytes per token, documents left out because empty."""

    documents: int
    tokens: int
    bytes: int
    tokens_by_domain: dict[str, int]
    bytes_by_domain: dict[str, int]
    empty: int
    shards_kept: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens - self.documents)


@dataclass(frozen=True, slots=True)
class _Options:
    """What the bytes of a shard depend on beside its documents."""

    tokenizer: Tokenizer
    language_separators: bool
    grammars: dict[str, str] | None
    """Grammar packages by language, where syntax nodes are written."""

    def fingerprint(self) -> str:
        return json.dumps([VERSION, self.tokenizer.fingerprint, self.language_separators, self.grammars])


def write_shards(
    documents: Iterable[TextDocument] | str | Path,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    shard_bytes: int = 256 << 20,
    language_separators: bool = False,
    syntax: bool = False,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> ShardsReport:
    """Tokenizes documents (or a corpus file of them) into the folder `out`.

    Killed and run again, it keeps the shards that are whole and were made from the same documents with the same
    tokenizer. Documents go to shards by their order and length alone, so the result is the same however often it was
    interrupted.

    Args:
        shard_bytes: text per shard, in UTF-8 bytes.
        language_separators: begin each document with its `<|lang:NAME|>`.
        syntax: store the syntax nodes of languages whose tree-sitter grammar is installed (extra `curation`), for
            FIM with `span="syntax"`.
        threads: shards written at once; they do not change the result. Each holds its documents in memory.
        progress: called with the number of documents done since the last call.

    Raises: MifyError: no end-of-text token, no document with text, an unknown domain, a part with an unknown token.
    """
    out = Path(out)
    if isinstance(documents, str | Path):
        from mify.curation.documents import read_documents

        documents = read_documents(documents)
    if tokenizer.eot_id is None:
        raise MifyError("the tokenizer has no end-of-text token", "add <|endoftext|> to its special tokens")
    make_folder(out)
    remove_leftovers(out)
    grammars = None
    if syntax:
        from mify.data.syntax import installed_grammars

        grammars = installed_grammars()
    options = _Options(tokenizer, language_separators, grammars)
    shards: list[dict[str, Any]] = []
    empty = kept = 0
    for group, meta, old in _each_shard(_groups(documents, shard_bytes), out, options, threads):
        empty += group.empty
        if meta is None:
            continue
        kept += old
        shards.append(meta)
        if progress is not None:
            progress(len(group.documents))
    if not shards:
        raise MifyError(f"there is no text to tokenize for {out}", "give a corpus with documents in it")
    names = {shard["name"] for shard in shards}
    for stale in out.glob("shard-*"):
        if stale.name not in names:
            shutil.rmtree(stale)
    tokenizer.save(out)
    totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
    tokens_by_domain, bytes_by_domain = (
        {name: sum(shard[key].get(name, 0) for shard in shards) for name in DOMAINS}
        for key in ("tokens_by_domain", "bytes_by_domain")
    )
    write_json(
        out / "meta.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "dtype": _token_dtype(tokenizer).name,
            "domains": list(DOMAINS),
            "language_separators": language_separators,
            "syntax": grammars,
            "content": hashlib.sha256("".join(shard["content"] for shard in shards).encode()).hexdigest(),
            "shards": [{"name": shard["name"], "content": shard["content"]} for shard in shards],
            "empty": empty,
            **totals,
            "tokens_by_domain": tokens_by_domain,
            "bytes_by_domain": bytes_by_domain,
        },
    )
    return ShardsReport(
        totals["documents"], totals["tokens"], totals["bytes"], tokens_by_domain, bytes_by_domain, empty, kept
    )


@dataclass(slots=True)
class _Group:
    documents: list[TextDocument]
    empty: int


_Done = tuple[_Group, dict[str, Any] | None, bool]
"""A group, the meta of its shard (None where it has no documents), whether it was there already."""


def _groups(documents: Iterable[TextDocument], shard_bytes: int) -> Iterator[_Group]:
    group, size = _Group([], 0), 0
    for document in documents:
        if document.domain not in DOMAINS:
            raise MifyError(
                f"document {document.id[:16]} has the unknown domain {document.domain!r}", f"use one of {DOMAINS}"
            )
        if not document.text:
            group.empty += 1
            continue
        length = len(document.text.encode("utf-8", errors="surrogatepass"))
        if group.documents and size + length > shard_bytes:
            yield group
            group, size = _Group([], 0), 0
        group.documents.append(document)
        size += length
    yield group


def _each_shard(groups: Iterable[_Group], out: Path, options: _Options, threads: int) -> Iterator[_Done]:
    """Every group once its shard is written, in order; `threads` of them are in the making at a time."""
    numbered = enumerate(groups)
    if threads <= 1:
        for number, group in numbered:
            yield _one_shard(group, out / f"shard-{number:05d}", options)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        waiting: deque[Future[_Done]] = deque()
        try:
            for number, group in numbered:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(_one_shard, group, out / f"shard-{number:05d}", options))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _one_shard(group: _Group, folder: Path, options: _Options) -> _Done:
    if not group.documents:
        return group, None, False
    source = hashlib.sha256(options.fingerprint().encode())
    for document in group.documents:
        source.update(f"{document.id} {document.domain} {document.language}\n".encode())
        for name, text in _parts(document):
            source.update(f"{name}\n".encode())
            source.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    meta = _whole_shard(folder, source.hexdigest())
    old = meta is not None
    if meta is None:
        meta = _write_shard(folder, group.documents, source.hexdigest(), options)
    return group, {"name": folder.name, **meta}, old


def _token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")


def _whole_shard(folder: Path, source: str) -> dict[str, Any] | None:
    """The meta of a shard that was made from `source` and has its files at their full size, else None."""
    if not (folder / "meta.json").exists():
        return None
    meta = read_json(folder / "meta.json")
    if meta.get("source") != source or meta.get("version") != VERSION:
        return None
    for name, file in meta["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != file["bytes"] or sha256_file(path) != file["sha256"]:
            return None
    return dict(meta)


def _parts(document: TextDocument) -> Sequence[tuple[str, str]]:
    parts: Sequence[tuple[str, str]] = getattr(document, "parts", None) or [("", document.text)]
    return parts


def _ids_of(documents: Sequence[TextDocument], options: _Options) -> Iterator[NDArray[Any]]:
    """Each document's ids, its special tokens and the final end-of-text included."""
    tokenizer = options.tokenizer
    known: dict[str, list[int]] = {"": []} | {name: [index] for name, index in tokenizer.special.items()}
    for start in range(0, len(documents), ENCODE_AT_ONCE):
        batch = documents[start : start + ENCODE_AT_ONCE]
        parts = [_parts(document) for document in batch]
        ids, offsets = tokenizer.encode_arrays([text for own in parts for _, text in own])
        place = 0
        for document, own in zip(batch, parts, strict=True):
            token = language_token(document.language) if options.language_separators else None
            pieces: list[NDArray[Any] | list[int]] = [known.get(token or "", [])]
            for name, _ in own:
                if name not in known:
                    raise MifyError(
                        f"document {document.id[:16]} has the token {name!r}, which the vocabulary lacks",
                        "use a tokenizer that `mify tokenizer train` made",
                    )
                pieces += [known[name], ids[offsets[place] : offsets[place + 1]]]
                place += 1
            yield np.concatenate([*pieces, [tokenizer.eot_id]]).astype(_token_dtype(tokenizer))


def _syntax_arrays(documents: Sequence[TextDocument]) -> dict[str, NDArray[Any]]:
    from mify.data.syntax import document_nodes

    nodes = [document_nodes(document) for document in documents]
    offsets = np.cumsum([0, *(len(own) for own in nodes)])
    return {"nodes": np.concatenate([*nodes, np.zeros((0, 2), np.int32)]).reshape(-1), "node_offsets": offsets}


def _write_shard(folder: Path, documents: list[TextDocument], source: str, options: _Options) -> dict[str, Any]:
    lengths = np.zeros(len(documents), np.int64)
    byte_lengths = np.array([len(document.text.encode()) for document in documents], np.int64)
    domains = np.array([DOMAINS.index(document.domain) for document in documents], np.uint8)
    with atomic_folder(folder) as temporary:
        with open(temporary / "tokens.bin", "wb") as file:
            for place, ids in enumerate(_ids_of(documents, options)):
                ids.tofile(file)
                lengths[place] = len(ids)
        arrays = {
            "offsets": np.concatenate([[0], np.cumsum(lengths)]),
            "document_ids": np.array([document_key(document.id) for document in documents], np.uint64),
            "byte_lengths": byte_lengths,
            "domains": domains,
            **({} if options.grammars is None else _syntax_arrays(documents)),
        }
        for name, array in arrays.items():
            array.astype({**ARRAYS, **SYNTAX_ARRAYS}[name]).tofile(temporary / f"{name}.bin")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(temporary.glob("*.bin"))
        }
        content = hashlib.sha256("".join(f"{name} {file['sha256']}\n" for name, file in files.items()).encode())
        meta = {
            "version": VERSION,
            "source": source,
            "content": content.hexdigest(),
            "documents": len(documents),
            "tokens": int(lengths.sum()),
            "bytes": int(byte_lengths.sum()),
            "tokens_by_domain": {name: int(lengths[domains == k].sum()) for k, name in enumerate(DOMAINS)},
            "bytes_by_domain": {name: int(byte_lengths[domains == k].sum()) for k, name in enumerate(DOMAINS)},
            "files": files,
        }
        write_json(temporary / "meta.json", meta)
    return meta
