"""Token shards as they are read: documents as ids in memory-mapped files, with what the plan needs to know of each.

`shard_format` says how they lie on disk; `write_shards` is in `shard_writer`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mify.data.shard_format import ARRAYS, DOMAINS, FORMAT, SYNTAX_ARRAYS, VERSION, document_key
from mify.data.shard_writer import ShardsReport, TextDocument, write_shards
from mify.errors import MifyError
from mify.files import read_json, sha256_file
from mify.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mify._core.packing import Shards as NativeShards

__all__ = ["DOMAINS", "ShardsReport", "TextDocument", "TokenShards", "document_key", "write_shards"]

VERIFY_LIMIT = 1 << 30
"""Token files of up to 1 GiB in all are hashed whenever they are opened; larger ones on request."""


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
        self.syntax: dict[str, str] | None = meta.get("syntax")
        """Grammar packages by language and version, where the shards hold syntax nodes."""
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
        self.nodes: NDArray[np.int32] | None = None
        """(N, 2) characters [start, end) of syntax nodes, where the shards were written with them."""
        self.node_offsets: NDArray[np.int64] | None = None
        """(documents + 1,) first node of each document."""
        if self.syntax:
            counts = [np.diff(shard["node_offsets"]) for shard in shards]
            self.nodes = np.concatenate([shard["nodes"].reshape(-1, 2) for shard in shards])
            self.node_offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    @cached_property
    def native(self) -> NativeShards:
        """These shards as `mify._core` reads them."""
        from mify._core.packing import Shards as NativeShards

        return NativeShards(
            tokens=[np.asarray(tokens) for tokens in self.tokens],
            offsets=self.offsets,
            keys=self.document_ids,
            domains=self.domains,
            nodes=None if self.nodes is None else self.nodes.reshape(-1),
            node_offsets=self.node_offsets,
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
        dtypes: dict[str, np.dtype[Any]] = {"tokens": self.dtype, **ARRAYS, **(SYNTAX_ARRAYS if self.syntax else {})}
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
        if self.syntax and (len(arrays["node_offsets"]) != len(offsets) or _pairs(arrays) * 2 != len(arrays["nodes"])):
            raise self._damaged(folder / "node_offsets.bin", "the offsets do not fit the nodes")
        if verify and len(arrays["tokens"]) and int(arrays["tokens"].max()) >= self.vocab_size:
            raise self._damaged(folder / "tokens.bin", f"an id is beyond the vocabulary of {self.vocab_size}")
        return arrays


def _pairs(arrays: dict[str, NDArray[Any]]) -> int:
    """How many nodes the offsets lead to; -1 where they fall."""
    offsets = arrays["node_offsets"]
    return int(offsets[-1]) if offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()) else -1
