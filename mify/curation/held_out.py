"""The held-out split: which documents are kept from training, decided by what they say and not by where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def keyed_hash(seed: int, *parts: str) -> int:
    """64 bits, uniform and independent between seeds: BLAKE2b keyed with the seed over length-framed parts."""
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(16, "little", signed=True), person=b"mify.curation")
    for part in parts:
        encoded = part.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def held_out_hashes(text_sha256s: Iterable[str], *, fraction: float, min_count: int, seed: int) -> frozenset[str]:
    """The content hashes that are held out: those whose keyed hash is below `fraction`, and at least `min_count`.

    Equal contents have equal hashes, so copies of a file never stand on both sides. Where fewer than `min_count`
    distinct contents exist, at most half of them are taken: training needs some, too.

    Raises:
        ValueError: `fraction` is outside [0, 1).
    """
    if _limit(fraction) == 0:
        return frozenset()
    ranked = sorted({(_key(seed, digest), digest) for digest in text_sha256s})
    count = sum(key < _limit(fraction) for key, _ in ranked)
    count = max(count, min(min_count, len(ranked) // 2))
    return frozenset(digest for _, digest in ranked[:count])


def is_held_out(text_sha256: str, *, fraction: float, seed: int) -> bool:
    """Whether `held_out_hashes` takes this content, whatever else there is (min_count 0)."""
    return _key(seed, text_sha256) < _limit(fraction)


def _key(seed: int, text_sha256: str) -> int:
    return keyed_hash(seed, "held-out", text_sha256)


def _limit(fraction: float) -> int:
    """`fraction` of the 64 bits of a key."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction = {fraction}: a value from 0 to below 1 is expected")
    return int(fraction * 2**64)
