"""Counter-based randomness: Philox 4x32-10, and what the data path draws from it.

Every decision is a pure function of (seed, epoch, document key, fragment, purpose), so nothing depends on the order in
which things were done. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the test vectors
are Random123's. (numpy's Philox is 4x64.) This is the readable twin of `csrc/packing/philox.hpp`.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """What a draw is for; each has a stream of its own. Numbers are part of the format: never reuse one."""

    FIM = 1
    """Words 0 and 1: permute this fragment?, as SPM? Words 2 and 3: which span or file."""
    CUT = 2
    """Words (0, 1) and (2, 3): the two cuts, 64 bits each."""
    DOCUMENT_ORDER = 3
    BIN_ORDER = 4
    SAMPLING = 5
    """Words (0, 1): which token generation draws; the fragment is its position."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox 4x32 on a 128-bit counter under a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low0, low1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (low1 >> 32) ^ c1 ^ k0, low1 & _U32, (low0 >> 32) ^ c3 ^ k1, low0 & _U32
        k0, k1 = (k0 + _W0) & _U32, (k1 + _W1) & _U32
    return c0, c1, c2, c3


def draw(seed: int, epoch: int, document: int, fragment: int, purpose: Purpose) -> tuple[int, int, int, int]:
    """Four random 32-bit words.

    Args: seed: 64 bits. epoch: below 2^24. document: 64 bits of its id. fragment: below 2^32.
    """
    counter = (document & _U32, document >> 32, fragment, epoch << 8 | purpose)
    return philox(counter, (seed & _U32, seed >> 32))


def philox_block(seed: int, first: int, count: int, purpose: Purpose) -> NDArray[np.uint32]:
    """(4, count) words: `draw(seed, 0, 0, fragment, purpose)` of the fragments from `first` on."""
    mask, shift = np.uint64(_U32), np.uint64(32)
    zeros = np.zeros(count, np.uint64)
    c0, c1, c2 = zeros, zeros, np.arange(first, first + count, dtype=np.uint64)
    c3 = np.full(count, int(purpose), np.uint64)
    k0, k1 = seed & _U32, seed >> 32
    for _ in range(10):
        low0, low1 = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1 = (low1 >> shift) ^ c1 ^ np.uint64(k0), low1 & mask
        c2, c3 = (low0 >> shift) ^ c3 ^ np.uint64(k1), low0 & mask
        k0, k1 = (k0 + _W0) & _U32, (k1 + _W1) & _U32
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def threshold(rate: float) -> int:
    """floor(rate * 2^32): a word is below it with the probability `rate`, exactly never at 0.0 and always at 1.0."""
    numerator, denominator = rate.as_integer_ratio()
    return numerator * (1 << 32) // denominator


def below(word: int, count: int) -> int:
    """A 64-bit word scaled to 0 .. count-1 by multiply-high."""
    return word * count >> 64


class Permutation:
    """A keyed permutation of 0 .. size-1 that needs no memory: six Feistel rounds with cycle walking.

    It orders documents within an epoch and bins within a window. (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002.)
    """

    def __init__(self, size: int, seed: int, epoch: int, corpus: int, window: int, purpose: Purpose) -> None:
        """Args: corpus: 64 bits of the shards' content hash, which stand where a document's key stands elsewhere."""
        self.size = size
        self.half_bits = max(1, (max(1, size - 1).bit_length() + 1) // 2)
        blocks = (draw(seed, epoch, corpus, 3 * window + block, purpose) for block in range(3))
        words = [word for block in blocks for word in block]
        self.keys = [words[i] | words[i + 1] << 32 for i in range(0, 12, 2)]

    def __call__(self, index: int) -> int:
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = index >> self.half_bits, index & mask
            for key in self.keys:
                mixed = ((right ^ key) * 0xBF58476D1CE4E5B9) & _U64
                mixed = ((mixed ^ mixed >> 32) * 0x94D049BB133111EB) & _U64
                left, right = right, left ^ (mixed >> 32 & mask)
            index = left << self.half_bits | right
            if index < self.size:
                return index
