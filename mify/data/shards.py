"""Token shards: documents as ids in memory-mapped files, with what the plan needs to know of each.

    FOLDER/meta.json          format, version, tokenizer fingerprint, content hash, the list of shards
    FOLDER/tokenizer.json     the tokenizer that wrote them
    FOLDER/shard-00000/
        meta.json             counts, SHA-256 of each file, fingerprint of the documents it was made from
        tokens.bin            uint16 (uint32 where the vocabulary passes 65,536), document after document,
                              each ending in <|endoftext|>
        offsets.bin           int64 (documents + 1): first token of each document
        document_ids.bin      uint64: the first 64 bits of the document's id
        byte_lengths.bin      int64: UTF-8 bytes of its text
        domains.bin           uint8: index into meta.json's `domains`

All numbers are little-endian. A shard appears whole or not at all; `meta.json` of the folder is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.files import atomic_folder, read_json, remove_leftovers, sha256_file, write_json
from mify.special_tokens import language_token
from mify.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mify._core.packing import Shards as NativeShards

FORMAT = "token-shards"
VERSION = 1
DOMAINS = ("code", "text", "math")
VERIFY_LIMIT = 1 << 30
"""Token files of up to 1 GiB in all are hashed whenever they are opened; larger ones on request."""

_ENCODE_AT_ONCE = 256
_ARRAYS: dict[str, np.dtype[Any]] = {
    "offsets": np.dtype("<i8"),
    "document_ids": np.dtype("<u8"),
    "byte_lengths": np.dtype("<i8"),
    "domains": np.dtype("u1"),
}


class TextDocument(Protocol):
    """What `write_shards` reads of a document (`mify.curation.documents.Document` has it)."""

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


def document_key(identity: str) -> int:
    """64 bits of a document's id, by which every random decision about it is keyed."""
    try:
        return int(identity[:16], 16)
    except ValueError:
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


def write_shards(
    documents: Iterable[TextDocument] | str | Path,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    shard_bytes: int = 256 << 20,
    language_separators: bool = False,
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
        threads: for encoding; they do not change the result.
        progress: called with the number of documents done since the last call.

    Raises: MifyError: no end-of-text token, no document with text, an unknown domain.
    """
    out = Path(out)
    if isinstance(documents, str | Path):
        from mify.curation.documents import read_documents

        documents = read_documents(documents)
    if tokenizer.eot_id is None:
        raise MifyError("the tokenizer has no end-of-text token", "add <|endoftext|> to its special tokens")
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    options = json.dumps([VERSION, tokenizer.fingerprint, language_separators])
    shards: list[dict[str, Any]] = []
    empty = kept = 0
    for number, group in enumerate(_groups(documents, shard_bytes)):
        empty += group.empty
        if not group.documents:
            continue
        folder = out / f"shard-{number:05d}"
        source = hashlib.sha256(options.encode())
        for document in group.documents:
            source.update(f"{document.id} {document.domain} {document.language}\n".encode())
            source.update(hashlib.sha256(document.text.encode(errors="surrogatepass")).digest())
        meta = _whole_shard(folder, source.hexdigest())
        if meta is None:
            meta = _write_shard(folder, group.documents, tokenizer, source.hexdigest(), language_separators, threads)
        else:
            kept += 1
        shards.append({"name": folder.name, **meta})
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


def _write_shard(
    folder: Path,
    documents: list[TextDocument],
    tokenizer: Tokenizer,
    source: str,
    language_separators: bool,
    threads: int,
) -> dict[str, Any]:
    lengths = np.zeros(len(documents), np.int64)
    pieces: list[NDArray[Any]] = []
    dtype = _token_dtype(tokenizer)
    for start in range(0, len(documents), _ENCODE_AT_ONCE):
        batch = documents[start : start + _ENCODE_AT_ONCE]
        ids, offsets = tokenizer.encode_arrays([document.text for document in batch], threads)
        for place, document in enumerate(batch):
            token = language_token(document.language) if language_separators else None
            head = [tokenizer.special[token]] if token is not None and token in tokenizer.special else []
            body = ids[offsets[place] : offsets[place + 1]]
            pieces.append(np.concatenate([head, body, [tokenizer.eot_id]]).astype(dtype))
            lengths[start + place] = len(pieces[-1])
    byte_lengths = np.array([len(document.text.encode()) for document in documents], np.int64)
    domains = np.array([DOMAINS.index(document.domain) for document in documents], np.uint8)
    arrays = {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "document_ids": np.array([document_key(document.id) for document in documents], np.uint64),
        "byte_lengths": byte_lengths,
        "domains": domains,
    }
    with atomic_folder(folder) as temporary:
        with open(temporary / "tokens.bin", "wb") as file:
            for piece in pieces:
                piece.tofile(file)
        for name, array in arrays.items():
            array.astype(_ARRAYS[name]).tofile(temporary / f"{name}.bin")
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


class TokenShards:
    """A folder of token shards, memory-mapped. Documents are numbered through all shards, in the folder's order.

    Args:
        folder: what `write_shards` wrote.
        tokenizer: refuse the folder if another tokenizer wrote it.
        verify: True hashes every file, False checks sizes only, None hashes when there is at most 1 GiB.

    Raises: MifyError: not a folder of shards, an unknown version, another tokenizer, a truncated or damaged file.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer | None = None, verify: bool | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MifyError(f"{folder} is no folder of token shards", "write it: mify tokenize --help")
        meta = read_json(self.folder / "meta.json")
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise MifyError(f"{self.folder} does not hold token shards", "write them: mify tokenize --help")
        if meta.get("version") != VERSION:
            raise MifyError(
                f"{self.folder} has token shards of version {meta.get('version')}; this mify reads version {VERSION}",
                "write them again with this mify, or use the mify that wrote them",
            )
        if tokenizer is not None and tokenizer.fingerprint != meta["tokenizer"]:
            raise MifyError(
                f"{self.folder} was written by another tokenizer "
                f"({meta['tokenizer'][:12]}, expected {tokenizer.fingerprint[:12]})",
                "run `mify tokenize` again with this tokenizer, or use the tokenizer.json in the folder",
            )
        self.meta: dict[str, Any] = meta
        self.domain_names: tuple[str, ...] = tuple(meta["domains"])
        self.vocab_size: int = meta["vocab_size"]
        self.content: str = meta["content"]
        self.dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        if verify is None:
            verify = meta["tokens"] * self.dtype.itemsize <= VERIFY_LIMIT
        shards = [self._open_shard(shard, verify) for shard in meta["shards"]]
        self.tokens: list[NDArray[Any]] = [shard["tokens"] for shard in shards]
        """One memory map a shard."""
        self.shard_starts = np.concatenate([[0], np.cumsum([len(tokens) for tokens in self.tokens])]).astype(np.int64)
        """First token of each shard in the numbering through all of them."""
        offsets = [shard["offsets"][:-1] + start for shard, start in zip(shards, self.shard_starts, strict=False)]
        self.offsets: NDArray[np.int64] = np.concatenate([*offsets, self.shard_starts[-1:]]).astype(np.int64)
        """(documents + 1,) first token of each document, through all shards."""
        self.document_ids: NDArray[np.uint64] = np.concatenate([shard["document_ids"] for shard in shards])
        self.byte_lengths: NDArray[np.int64] = np.concatenate([shard["byte_lengths"] for shard in shards])
        self.domains: NDArray[np.uint8] = np.concatenate([shard["domains"] for shard in shards])

    @cached_property
    def native(self) -> NativeShards:
        """These shards as `mify._core` reads them."""
        from mify._core.packing import Shards as NativeShards

        return NativeShards(
            tokens=[np.asarray(tokens) for tokens in self.tokens],
            offsets=self.offsets,
            keys=self.document_ids,
            domains=self.domains,
        )

    @property
    def key(self) -> int:
        """64 bits of the content hash, by which orders within these shards are keyed."""
        return int(self.content[:16], 16)

    @property
    def num_documents(self) -> int:
        return len(self.document_ids)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    def document(self, index: int) -> NDArray[Any]:
        """The ids of document `index`, the final end-of-text included."""
        if not 0 <= index < self.num_documents:
            raise MifyError(
                f"{self.folder} has no document {index}", f"give a number from 0 to {self.num_documents - 1}"
            )
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        shard = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        base = int(self.shard_starts[shard])
        return np.asarray(self.tokens[shard][start - base : end - base])

    def _damaged(self, path: Path, why: str) -> MifyError:
        return MifyError(f"{path} is damaged: {why}", f"delete {self.folder} and run `mify tokenize` again")

    def _open_shard(self, entry: dict[str, Any], verify: bool) -> dict[str, NDArray[Any]]:
        folder = self.folder / entry["name"]
        meta = read_json(folder / "meta.json")
        if meta.get("content") != entry["content"]:
            raise self._damaged(folder, "its content hash is not the one that meta.json lists")
        dtypes: dict[str, np.dtype[Any]] = {"tokens": self.dtype, **_ARRAYS}
        for name in dtypes:
            path, expected = folder / f"{name}.bin", meta["files"][f"{name}.bin"]
            size = path.stat().st_size if path.exists() else -1
            if size != expected["bytes"]:
                raise self._damaged(path, f"{size} bytes where {expected['bytes']} were written")
            if verify and sha256_file(path) != expected["sha256"]:
                raise self._damaged(path, "its bytes are not those that were written")
        arrays: dict[str, NDArray[Any]] = {
            name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r")
            if name == "tokens"
            else np.fromfile(folder / f"{name}.bin", dtype=dtype)
            for name, dtype in dtypes.items()
        }
        offsets = arrays["offsets"]
        if (
            len(offsets) != len(arrays["document_ids"]) + 1
            or offsets[0] != 0
            or offsets[-1] != len(arrays["tokens"])
            or bool((np.diff(offsets) < 0).any())
        ):
            raise self._damaged(folder / "offsets.bin", "the offsets do not fit the tokens")
        if verify and len(arrays["tokens"]) and int(arrays["tokens"].max()) >= self.vocab_size:
            raise self._damaged(folder / "tokens.bin", f"an id is beyond the vocabulary of {self.vocab_size}")
        return arrays
