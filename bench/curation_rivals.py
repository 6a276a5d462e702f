"""The rivals of `mify bench curation`, each doing the same work on the same documents.

All get word n-grams by the same regular expression; what each spends on it is part of its time, as it is of ours.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WORD, _ASCII_WORD = re.compile(r"\w+"), re.compile(r"\w+", re.ASCII)

Sign = Callable[[], Any]


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def shingle_set(text: str, lowercase: bool, n: int = 5, word: re.Pattern[str] | None = None) -> set[str]:
    """Word n-grams joined by spaces, as a rival's user writes it. `word`: what a word is, in place of the usual."""
    pattern = word or (_WORD if lowercase else _ASCII_WORD)
    words = pattern.findall(text.lower() if lowercase else text)
    if len(words) < n:
        return {" ".join(words)} if words else set()
    return {" ".join(gram) for gram in zip(*(words[i:] for i in range(n)), strict=False)}


def signers(texts: list[str], num_perm: int, lowercase: bool) -> dict[str, Sign]:
    """Rival → a call that turns the texts into signatures; those that are not installed are left out."""
    found: dict[str, Sign] = {}
    if installed("datasketch"):
        found["datasketch"] = lambda: datasketch_signatures(texts, num_perm, lowercase)
    if installed("rensa"):
        found["rensa"] = lambda: rensa_signatures(texts, num_perm, lowercase)
    if installed("daft"):
        import daft

        # daft splits at white space and has no way to be told otherwise: fewer, longer words, so less work than ours.
        frame = daft.from_pydict({"text": [text.lower() for text in texts] if lowercase else texts}).collect()
        column = daft.col("text").minhash(num_hashes=num_perm, ngram_size=5, seed=1, hash_function="xxhash")
        found["daft"] = lambda: frame.with_column("signature", column).collect()
    return found


def datasketch_signatures(texts: list[str], num_perm: int, lowercase: bool) -> list[Any]:
    """datasketch's fastest way, `MinHash.bulk`, a few hundred documents at a time."""
    from datasketch import MinHash

    out: list[Any] = []
    for begin in range(0, len(texts), 512):
        batch = [[gram.encode() for gram in shingle_set(text, lowercase)] for text in texts[begin : begin + 512]]
        out += MinHash.bulk(batch, num_perm=num_perm)
    return out


def count_equal(texts: list[str], ours: Any) -> int:
    """How many documents have datasketch's very signature: Unicode words, case kept, 128 permutations, sha1."""
    from datasketch import MinHash

    equal = 0
    for begin in range(0, len(texts), 512):
        batch = [
            [gram.encode() for gram in shingle_set(text, lowercase=False, word=_WORD)]
            for text in texts[begin : begin + 512]
        ]
        sketches = MinHash.bulk(batch, num_perm=128)
        rows = ours[begin : begin + len(batch)]
        equal += sum(bool((sketch.hashvalues == row).all()) for sketch, row in zip(sketches, rows, strict=True))
    return equal


def rensa_signatures(texts: list[str], num_perm: int, lowercase: bool) -> list[Any]:
    import rensa

    out: list[Any] = []
    for begin in range(0, len(texts), 512):
        batch = [list(shingle_set(text, lowercase)) for text in texts[begin : begin + 512]]
        out += rensa.RMinHash.from_token_sets(batch, num_perm, 42)
    return out


def datasketch_clusters(sketches: list[Any], num_bands: int, rows: int) -> list[int]:
    """LSH candidates joined by union-find, as datasketch's users write it."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(num_perm=len(sketches[0]), params=(num_bands, rows))
    for i, sketch in enumerate(sketches):
        lsh.insert(i, sketch, check_duplication=False)
    return _joined(len(sketches), (lsh.query(sketch) for sketch in sketches))


def rensa_clusters(sketches: list[Any], num_perm: int, num_bands: int) -> list[int]:
    import rensa

    lsh = rensa.RMinHashLSH(threshold=0.7, num_perm=num_perm, num_bands=num_bands)
    lsh.insert_many(sketches, 0)
    return _joined(len(sketches), lsh.query_all(sketches))


def _joined(count: int, candidates: Any) -> list[int]:
    parent = list(range(count))

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for i, others in enumerate(candidates):
        for j in others:
            if j < i:
                a, b = find(i), find(j)
                if a != b:
                    parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(count)]


def environment_python(name: str) -> Path | None:
    """The interpreter of a rival that cannot live beside us: in $MIFY_RIVALS, or in .rivals where `make rivals` ran."""
    root = Path(os.environ.get("MIFY_RIVALS", Path(__file__).resolve().parent.parent / ".rivals"))
    python = root / name / "bin" / "python"
    return python if python.is_file() else None


def child_cpu_seconds(command: list[str]) -> float:
    """Runs a command on one core and returns the CPU time of it and its children; a failure raises."""
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys((*one_thread, "HF_DATASETS_OFFLINE"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} … failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def text_dedup_command(python: Path, parquet: Path, out: Path, num_bands: int, rows: int) -> list[str]:
    """text-dedup's own command line on a Parquet file, with the same bands as ours."""
    cache = out.parent / f"{out.name}-cache"
    options = {
        "path": "parquet", "data_files": parquet, "split": "train", "cache_dir": cache, "output": out,
        "column": "text", "batch_size": 10000, "num_perm": 128, "ngram": 5, "threshold": 0.7, "b": num_bands,
        "r": rows, "hash_func": "sha1", "num_proc": 1,
    }  # fmt: skip
    return [str(python), "-m", "text_dedup.minhash", *(str(part) for k, v in options.items() for part in (f"--{k}", v))]


_OURS = """
import sys
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mify.curation.minhash import near_duplicates
# Mapped, and written batch by batch: fresh pages for 250 MB cost more than the search.
file = pq.ParquetFile(sys.argv[1], memory_map=True)
batches = list(file.iter_batches(batch_size=4096, use_threads=False))
table = pa.Table.from_batches(batches)
found = near_duplicates(table.column("id").to_pylist(), table.column("text"))
keep = np.ones(len(table), bool)
keep[[index for index, _, _ in found.removed]] = False
with pq.ParquetWriter(sys.argv[2], table.schema, compression="none", use_dictionary=False) as writer:
    begin = 0
    for batch in batches:
        writer.write_batch(batch.filter(pa.array(keep[begin : begin + len(batch)])))
        begin += len(batch)
print(len(found.removed))
"""


def our_command(parquet: Path, out: Path) -> list[str]:
    """The same of ours: a Parquet file in, near-duplicates decided exactly, the kept documents written."""
    return [sys.executable, "-c", _OURS, str(parquet), str(out)]
