"""Plain-Python references of what csrc/minhash and csrc/text do: slow, obvious, and sharing no code with them."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

Text = str | bytes


def lower(word: str) -> str:
    """Simple lower-casing, one code point to one: chr(c).lower() but for U+0130, whose full form has two."""
    return "".join(character.lower()[0] for character in word)


def decoded(text: Text) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def words(text: Text, lowercase: bool = True) -> list[str]:
    found = re.findall(r"\w+", decoded(text))
    return [lower(word) for word in found] if lowercase else found


def shingles(text: Text, n: int = 5, lowercase: bool = True) -> list[str]:
    """The word n-grams joined by spaces, in order; a text of fewer words has one shingle of all of them."""
    found = words(text, lowercase)
    if not found:
        return []
    return [" ".join(found[i : i + n]) for i in range(max(1, len(found) - n + 1))]


def sha1_64(shingle: str) -> int:
    return int.from_bytes(hashlib.sha1(shingle.encode()).digest()[:8], "little")


def jaccard(x: set[str], y: set[str]) -> float:
    return len(x & y) / len(x | y) if x and y else 0.0


def star(
    ids: Sequence[str], texts: Sequence[Text], threshold: float, n: int = 5, lowercase: bool = True
) -> tuple[dict[int, tuple[int, float]], list[int]]:
    """The greedy star over all pairs: ({removed: (kept, Jaccard)}, cluster id of each text)."""
    sets = [set(shingles(text, n, lowercase)) for text in texts]
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    rank = {index: position for position, index in enumerate(order)}
    kept_with: dict[str, list[int]] = defaultdict(list)
    removed: dict[int, tuple[int, float]] = {}
    parent = list(range(len(ids)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for index in order:
        common: dict[int, int] = defaultdict(int)
        for shingle in sets[index]:
            for kept in kept_with[shingle]:
                common[kept] += 1
        similar = [(count / (len(sets[index]) + len(sets[kept]) - count), kept) for kept, count in common.items()]
        similar = [(similarity, kept) for similarity, kept in similar if similarity >= threshold]
        if not similar:
            for shingle in sets[index]:
                kept_with[shingle].append(index)
            continue
        best = max(similar, key=lambda pair: (pair[0], -rank[pair[1]]))
        removed[index] = (best[1], best[0])
        for _, kept in similar:
            x, y = root(index), root(kept)
            low, high = sorted((x, y), key=rank.__getitem__)
            parent[high] = low
    return removed, [root(i) for i in range(len(ids))]
