from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNICODE_VERSION: str

class Texts:
    @staticmethod
    def from_list(texts: Sequence[str | bytes]) -> Texts: ...
    @staticmethod
    def from_buffers(data: Any, offsets: NDArray[np.int32] | NDArray[np.int64]) -> Texts: ...
    @staticmethod
    def join(parts: Sequence[Texts]) -> Texts: ...
    def take(self, order: NDArray[np.int64]) -> Texts: ...
    def ascending(self) -> tuple[NDArray[np.int64], int]: ...
    @property
    def num_bytes(self) -> int: ...
    def __len__(self) -> int: ...

class SignatureConfig:
    def __init__(
        self,
        *,
        ngram: int,
        lowercase: bool,
        hash: str,
        scheme: str,
        num_perm: int,
        seed: int,
        a: NDArray[np.uint64],
        b: NDArray[np.uint64],
    ) -> None: ...

def sign(
    texts: Texts,
    config: SignatureConfig,
    threads: int,
    values: NDArray[Any],
    num_shingles: NDArray[np.uint64],
    invalid_bytes: NDArray[np.uint64],
) -> None: ...
def signatures_of_hashes(
    hashes: NDArray[np.uint64], offsets: NDArray[np.uint64], config: SignatureConfig
) -> NDArray[Any]: ...
def shingle_hashes(text: str | bytes, ngram: int, lowercase: bool, hash: str) -> NDArray[np.uint64]: ...
def word_spans(text: str | bytes) -> NDArray[np.int64]: ...
def lsh_clusters(
    signatures: NDArray[Any], num_shingles: NDArray[np.uint64], num_bands: int, rows_per_band: int, threads: int
) -> tuple[NDArray[np.int64], int]: ...
def greedy_star(
    texts: Texts,
    config: SignatureConfig,
    signatures: NDArray[Any],
    num_shingles: NDArray[np.uint64],
    *,
    num_bands: int,
    rows_per_band: int,
    threshold: float,
    verify: bool,
    min_matches: int,
    bucket_cap: int,
    seed: int,
    threads: int,
) -> dict[str, Any]: ...
def band_runs(
    signatures: NDArray[Any],
    num_shingles: NDArray[np.uint64],
    documents: NDArray[np.uint64],
    num_bands: int,
    rows_per_band: int,
    threads: int,
) -> NDArray[np.uint64]: ...

class BucketPairs:
    def __init__(self, entries: NDArray[np.uint64], bucket_cap: int) -> None: ...
    def next(self, limit: int) -> NDArray[np.uint64]: ...
    @property
    def num_buckets(self) -> int: ...
    @property
    def capped(self) -> NDArray[np.uint64]: ...

def similarities(
    later_texts: Texts,
    later_signatures: NDArray[Any],
    earlier_texts: Texts,
    earlier_signatures: NDArray[Any],
    later: NDArray[np.uint64],
    earlier: NDArray[np.uint64],
    config: SignatureConfig,
    *,
    threshold: float,
    verify: bool,
    min_matches: int,
    threads: int,
) -> tuple[NDArray[np.float64], int]: ...

class StarPass:
    def __init__(self, num_documents: int) -> None: ...
    def add(
        self, later: NDArray[np.uint64], earlier: NDArray[np.uint64], jaccard: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]: ...
    def clusters(self, begin: int, end: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...

def jaccard(x: str | bytes, y: str | bytes, ngram: int, lowercase: bool) -> float: ...
def sha1_prefix64(data: bytes) -> int: ...
def xxh32(data: bytes) -> int: ...
def kernel_name() -> str: ...

class NgramIndex:
    def __init__(self, n: int, min_words: int, min_named_words: int) -> None: ...
    def add(self, text: str | bytes) -> int: ...
    def match(self, text: str | bytes) -> list[tuple[int, int, int]]: ...
    @property
    def num_entries(self) -> int: ...
    @property
    def num_ngrams(self) -> int: ...
    @property
    def num_short_texts(self) -> int: ...
    @property
    def num_unindexed_texts(self) -> int: ...
    @property
    def num_unnamed_ngrams(self) -> int: ...
