"""Counter-based randomness, byte-level BPE, FIM plans, best-fit packing and the gather pass. See csrc/packing."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class Bpe:
    """A byte-level BPE with the qwen2 pre-tokenizer. Merges are in the order of their ranks.

    Raises: ValueError: an id beyond the vocabulary, arrays of unequal lengths.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        is_special: NDArray[np.uint8],
        merge_left: NDArray[np.uint32],
        merge_right: NDArray[np.uint32],
        merge_result: NDArray[np.uint32],
        byte_ids: NDArray[np.uint32],
        ignore_merges: bool = False,
    ) -> None: ...
    @property
    def vocab_size(self) -> int: ...
    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(ids, offsets (len(texts) + 1,)): text i has ids[offsets[i]:offsets[i + 1]]."""

class WordCounts:
    """Pre-tokens (qwen2 pattern) and how often each occurs."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add(self, texts: Sequence[str], threads: int = 1) -> None: ...

def train_bpe(
    words: WordCounts, vocab_size: int, first_id: int, bytes: bytes
) -> tuple[list[bytes], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """(tokens, merge_left, merge_right, merge_result) of a byte-level BPE.

    Ids from `first_id` on: the 256 bytes in the order of `bytes`, then `tokens`, until there are `vocab_size` ids or no
    pair is left. Merges are in the order of their ranks.
    """

class Shards:
    """Token shards as the plan and the rows read them; keeps the arrays alive.

    Raises: TypeError, ValueError: tokens that are not uint16 or uint32, offsets that do not fit them.
    """

    def __init__(
        self,
        tokens: Sequence[NDArray[Any]],
        offsets: NDArray[np.int64],
        keys: NDArray[np.uint64],
        domains: NDArray[np.uint8],
        nodes: NDArray[np.int32] | None = None,
        node_offsets: NDArray[np.int64] | None = None,
    ) -> None: ...

class Counts(TypedDict):
    fragments: int
    psm: int
    spm: int
    plain_no_room: int
    plain_no_boundary: int
    plain_no_text: int
    source_tokens: int
    tokens: int

class PlanArrays(TypedDict):
    bin_starts: NDArray[np.int64]
    piece_document: NDArray[np.int64]
    piece_fragment: NDArray[np.int32]
    piece_mode: NDArray[np.uint8]
    piece_middle: NDArray[np.int32]
    span_starts: NDArray[np.int64]
    span_source: NDArray[np.int64]
    span_length: NDArray[np.int32]
    patches: NDArray[np.uint32]

def plan_window(
    bpe: Bpe,
    shards: Shards,
    documents: NDArray[np.int64],
    *,
    context: int,
    max_pieces: int,
    seed: int,
    epoch: int,
    window: int,
    corpus_key: int,
    fim_domains: int,
    rate_threshold: int,
    spm_threshold: int,
    cuts: str,
    sentinels: Sequence[int],
    file_separator: int,
    threads: int = 1,
) -> tuple[PlanArrays, Counts]:
    """The arrays of `mify.data.plan.WindowPlan`. `sentinels`: prefix, middle, suffix, end of text."""

def make_rows(
    shards: Shards,
    bin_starts: NDArray[np.int64],
    piece_document: NDArray[np.int64],
    span_starts: NDArray[np.int64],
    span_source: NDArray[np.int64],
    piece_mode: NDArray[np.uint8],
    piece_middle: NDArray[np.int32],
    span_length: NDArray[np.int32],
    patches: NDArray[np.uint32],
    bins: NDArray[np.int64],
    *,
    context: int,
    pad_id: int,
    sentinels: Sequence[int],
    middle_only: bool,
    skip: NDArray[np.uint64],
    threads: int = 1,
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """The arrays of `mify.data.rows.PackedRows`: tokens, loss_bits, segment_starts, row_starts, used."""

def best_fit_decreasing(
    lengths: NDArray[np.int32], capacity: int, max_pieces: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(starts (bins + 1,), pieces): bin b has pieces[starts[b]:starts[b + 1]]."""

def permutation(
    size: int, seed: int, epoch: int, corpus: int, window: int, purpose: int, low: int, high: int
) -> NDArray[np.int64]:
    """The images of low .. high - 1 under the keyed permutation of 0 .. size - 1."""

def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10."""

def pre_tokens(text: str) -> NDArray[np.int64]:
    """Where each pre-token of the text ends, in UTF-8 bytes."""

def character_classes() -> NDArray[np.uint8]:
    """(0x110000,) 0 other, 1 letter, 2 number, 3 white space."""
