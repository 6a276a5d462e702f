"""The corpus of `mify bench curation`: real files of this machine and mutated copies of them, pinned by a hash.

The files are those of the Python installation and of the system's headers and scripts, in a seeded order; mutants have
lines dropped, inserted and changed, names renamed, and license headers added, at levels from 1% to 30%, so that pairs
stand at every similarity. The hash names the very documents: two runs with one hash measured the same input.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError

SUFFIXES = {
    ".py", ".pyi", ".md", ".rst", ".txt", ".c", ".h", ".cpp", ".hpp", ".js", ".ts", ".html", ".css", ".sh", ".toml",
    ".cfg", ".yaml", ".yml", ".java", ".rs", ".go", ".pyx", ".pxd", ".cu", ".cmake", ".ipynb", ".pl", ".pm",
}  # fmt: skip
MIN_BYTES, MAX_BYTES = 300, 100_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, with ids that sort in another one."""

    texts: list[str]

    @cached_property
    def ids(self) -> list[str]:
        return [hashlib.sha256(f"document {i}".encode()).hexdigest() for i in range(len(self.texts))]

    @cached_property
    def num_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for text in self.texts:
            raw = text.encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()

    @property
    def name(self) -> str:
        return f"corpus {self.sha256[:12]}: {len(self.texts):,} documents, {self.num_bytes / 1e6:.1f} MB"

    def sample(self, num_bytes: int, *, ascii_only: bool = False) -> Corpus:
        """The first documents up to about `num_bytes`, all of them ASCII where asked for."""
        taken: list[str] = []
        for text in self.texts:
            if num_bytes <= 0:
                break
            if text.isascii() or not ascii_only:
                taken.append(text)
                num_bytes -= len(text)
        return Corpus(taken)


def build(max_files: int, seed: int, folder: Path | None = None) -> Corpus:
    """Up to `max_files` files, and half as many mutants and copies, shuffled; the same for the same files and seed."""
    random_ = random.Random(seed)
    files = sorted(_files([folder] if folder else _roots()))
    random_.shuffle(files)
    texts: list[str] = []
    seen: set[bytes] = set()
    for file in files:
        if len(texts) == max_files:
            break
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in seen and len(_WORD.findall(text)) >= 20:
            seen.add(digest)
            texts.append(text)
    if len(texts) < 10:
        raise MifyError(f"{folder or 'this machine'} holds too few text files to measure on", "pass --data FOLDER")
    lines = [line for text in random_.sample(texts, min(500, len(texts))) for line in text.split("\n") if line.strip()]
    bases = len(texts)
    for _ in range(bases * 2 // 5):
        level = random_.choice([0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.3])
        texts.append(_mutant(texts[random_.randrange(bases)], random_, level, lines))
    texts.extend(texts[random_.randrange(bases)] for _ in range(bases // 10))
    random_.shuffle(texts)
    return Corpus(texts)


def _roots() -> list[Path]:
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"], paths["purelib"], "/usr/lib/python3", "/usr/include", "/usr/share/perl"]
    return [Path(root) for root in roots if Path(root).is_dir()]


def _files(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder) / name
                if path.suffix in SUFFIXES and not path.is_symlink() and MIN_BYTES <= path.stat().st_size <= MAX_BYTES:
                    yield path


def _mutant(text: str, random_: random.Random, level: float, pool: list[str]) -> str:
    out: list[str] = []
    for line in text.split("\n"):
        draw = random_.random()
        if draw < level * 0.3:
            continue
        if draw < level * 0.6:
            out.append(random_.choice(pool))
        if draw < level:
            words = line.split(" ")
            words[random_.randrange(len(words))] = f"v{random_.randrange(10**6)}"
            line = " ".join(words)
        out.append(line)
    mutated = "\n".join(out)
    if random_.random() < 0.5:
        names = sorted({word for word in _WORD.findall(mutated) if len(word) > 4 and not word.isdigit()})
        renamed = {name: f"{name}_{random_.randrange(99)}" for name in names[:: max(1, len(names) // 3)]}
        if level < 0.1:
            renamed = dict(list(renamed.items())[:1])
        mutated = _WORD.sub(lambda match: renamed.get(match[0], match[0]), mutated)
    if random_.random() < 0.3:
        mutated = f"# Copyright (c) 20{random_.randrange(10, 27)} Somebody {random_.randrange(999)}\n{mutated}"
    return mutated


def exact_star(corpus: Corpus, threshold: float, n: int = 5) -> dict[int, tuple[int, float]]:
    """The greedy star over all pairs, {removed: (kept, Jaccard)}: the truth that LSH is measured against.

    Exact, by prefix filtering: two sets of similarity >= t share a shingle among the rarest |x| - ceil(t |x|) + 1 of
    each, so only those are indexed. Shingles are Python strings here, tokenized by `re`: none of the core's code.
    """
    texts, ids = corpus.texts, corpus.ids
    numbers: dict[str, int] = {}
    sets: list[NDArray[np.int64]] = []
    for text in texts:
        words = [word.lower() for word in _WORD.findall(text)]
        grams = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()
        sets.append(np.array([numbers.setdefault(gram, len(numbers)) for gram in grams], np.int64))
    counts = np.bincount(np.concatenate(sets), minlength=len(numbers))
    rank = np.empty(len(numbers), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(numbers))
    sets = [np.sort(rank[grams]) for grams in sets]
    index: dict[int, list[int]] = defaultdict(list)
    removed: dict[int, tuple[int, float]] = {}
    for document in sorted(range(len(texts)), key=ids.__getitem__):
        mine = sets[document]
        prefix = mine[: len(mine) - int(np.ceil(threshold * len(mine))) + 1].tolist()
        best: tuple[float, int] | None = None
        for kept in sorted({other for gram in prefix for other in index[gram]}, key=ids.__getitem__):
            small, large = sorted((len(mine), len(sets[kept])))
            if small / large < threshold:
                continue
            common = len(np.intersect1d(mine, sets[kept], assume_unique=True))
            similarity = common / (small + large - common)
            if similarity >= threshold and (best is None or similarity > best[0]):
                best = (similarity, kept)
        if best is not None:
            removed[document] = (best[1], best[0])
            continue
        for gram in prefix:
            index[gram].append(document)
    return removed
