"""What a language model must beat: a byte n-gram and xz, both given the same training text."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mify.curation.documents import Document


class ByteNgram:
    """An interpolated byte n-gram with Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1996, section
    2.5).

        p_n(c | h) = (count(h, c) + T(h) · p_(n-1)(c | h')) / (count(h) + T(h)),    p_0 = 1/256,

    where T(h) is how many different bytes followed h and h' is h without its first byte. Contexts are counted exactly,
    as integers in sorted arrays: at most 7 bytes to an n-gram.

    Args:
        data: the training bytes, documents end to end.
        order: bytes an n-gram spans, the predicted one included.
    """

    def __init__(self, data: bytes, order: int) -> None:
        if not 1 <= order <= 7:
            raise ValueError(f"order is {order}; it must lie between 1 and 7")
        self.order = order
        self._levels = [_Level(data, length) for length in range(1, order + 1)]

    def bits_per_byte(self, documents: Sequence[bytes]) -> float:
        """The code length of the documents in bits per byte; each document begins without a context."""
        bits = sum(self._bits(document) for document in documents)
        return bits / max(1, sum(len(document) for document in documents))

    def _bits(self, data: bytes) -> float:
        if not data:
            return 0.0
        probability = np.full(len(data), 1.0 / 256)
        for length, level in enumerate(self._levels, 1):
            # The first bytes of a document have shorter contexts: longer levels leave their probability as it is.
            probability[length - 1 :] = level.interpolate(_grams(data, length), probability[length - 1 :])
        return float(-np.log2(probability).sum())


class _Level:
    """Counts of all n-grams of one length, and of the contexts (the n-gram without its last byte)."""

    def __init__(self, data: bytes, length: int) -> None:
        keys, counts = np.unique(_grams(data, length), return_counts=True)
        self._keys = keys
        self._counts = counts.astype(np.float64)
        contexts, first = np.unique(keys >> np.uint64(8), return_index=True)
        self._contexts = contexts
        bounds = np.append(first, len(keys))
        self._distinct = np.diff(bounds).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(self._counts)])
        self._totals = sums[bounds[1:]] - sums[bounds[:-1]] if len(keys) else np.zeros(0)

    def interpolate(self, grams: NDArray[np.uint64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
        count = _look_up(self._keys, self._counts, grams)
        contexts = grams >> np.uint64(8)
        total = _look_up(self._contexts, self._totals, contexts)
        distinct = _look_up(self._contexts, self._distinct, contexts)
        known = total > 0
        result = lower.copy()
        result[known] = (count[known] + distinct[known] * lower[known]) / (total[known] + distinct[known])
        return result


def _grams(data: bytes, length: int) -> NDArray[np.uint64]:
    """All byte n-grams of `data` as big-endian integers: (len(data) - length + 1,) uint64."""
    values = np.frombuffer(data, dtype=np.uint8)
    count = max(0, len(values) - length + 1)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        grams = (grams << np.uint64(8)) | values[offset : offset + count]
    return grams


def _look_up(keys: NDArray[np.uint64], values: NDArray[np.float64], wanted: NDArray[np.uint64]) -> NDArray[np.float64]:
    """values[i] where keys[i] == wanted, else 0."""
    if not len(keys):
        return np.zeros(len(wanted))
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0.0)


def xz_bits_per_byte(documents: Sequence[bytes], training: bytes = b"") -> float:
    """Bits per byte of the documents as one LZMA2 stream, or of what they add to a stream that begins with `training`.

    The window spans both, so every byte of `training` can be referred to. The stream's own frame is counted once in
    both lengths, and so cancels where there is training text.
    """
    data = b"".join(documents)
    if not data:
        raise ValueError("documents has no bytes")
    window = 1 << max(16, math.ceil(math.log2(len(training) + len(data))))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(window, 1 << 30)}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters))

    return 8 * (size(training + data) - (size(training) if training else 0)) / len(data)


def training_bytes(documents: Iterable[Document], limit: int) -> dict[str, bytes]:
    """At most `limit` bytes of the training documents of each domain, whole documents in order of id."""
    parts: dict[str, list[bytes]] = {}
    sizes: dict[str, int] = {}
    for document in sorted(documents, key=lambda document: document.id):
        data = document.text.encode("utf-8")
        size = sizes.get(document.domain, 0)
        if data and size + len(data) <= limit:
            parts.setdefault(document.domain, []).append(data)
            sizes[document.domain] = size + len(data)
    return {domain: b"".join(data) for domain, data in parts.items()}
