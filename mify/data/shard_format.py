"""The stored form of token shards, which `shard_writer` writes and `shards` reads.

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
        nodes.bin             where written with `syntax`: int32 pairs, the characters [start, end) of syntax nodes,
                              counted through the document's text, special tokens not counted
        node_offsets.bin      int64 (documents + 1): first pair of each document

All numbers are little-endian. A shard appears whole or not at all; `meta.json` of the folder is written last.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

FORMAT = "token-shards"
VERSION = 1
DOMAINS = ("code", "text", "math")

ARRAYS: dict[str, np.dtype[Any]] = {
    "offsets": np.dtype("<i8"),
    "document_ids": np.dtype("<u8"),
    "byte_lengths": np.dtype("<i8"),
    "domains": np.dtype("u1"),
}
SYNTAX_ARRAYS: dict[str, np.dtype[Any]] = {"nodes": np.dtype("<i4"), "node_offsets": np.dtype("<i8")}


def document_key(identity: str) -> int:
    """64 bits of a document's id, by which every random decision about it is keyed."""
    try:
        return int(identity[:16], 16)
    except ValueError:
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
