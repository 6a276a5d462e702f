"""The plan of a window of documents: which fragments, which FIM cuts, which patch tokens, which bins.

A plan holds no document text. It says, for every piece, which of the shards' tokens to copy and which few tokens to put
between them, so that making rows from it (`mify.data.rows`) is a gather and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mify.data.fim import MIN_CONTEXT, FimConfig
from mify.data.shards import TokenShards
from mify.errors import MifyError
from mify.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """What happened while planning; sums over windows."""

    documents: int = 0
    fragments: int = 0
    psm: int = 0
    spm: int = 0
    plain_no_room: int = 0
    """Fragments chosen for FIM that stayed in plain order because the permuted form would not fit."""
    plain_no_boundary: int = 0
    """... because an end of the fragment is no place where text and tokens part."""
    plain_no_text: int = 0
    """... because there is nothing to cut in them."""
    source_tokens: int = 0
    """Tokens of the documents."""
    tokens: int = 0
    """Tokens of the pieces: sentinels, end-of-text tokens of middles and re-merged cuts included."""
    bins: int = 0
    padding: int = 0

    def __add__(self, other: PlanCounts) -> PlanCounts:
        return PlanCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """P pieces in B bins, in the order in which the bins are consumed."""

    bin_starts: NDArray[np.int64]
    """(B + 1,) first piece of each bin."""
    piece_document: NDArray[np.int64]
    """(P,) number of the document in its shards."""
    piece_fragment: NDArray[np.int32]
    """(P,) number of the fragment in its document."""
    piece_mode: NDArray[np.uint8]
    """(P,) 0 plain, 1 PSM, 2 SPM."""
    piece_middle: NDArray[np.int32]
    """(P,) where in the piece its middle begins; 0 for a plain piece."""
    span_starts: NDArray[np.int64]
    """(P + 1,) first span of each piece."""
    span_source: NDArray[np.int64]
    """(S,) a token's number in the shards (>= 0), or ~place in `patches` (< 0)."""
    span_length: NDArray[np.int32]
    """(S,)"""
    patches: NDArray[np.uint32]
    """Sentinels, end-of-text tokens and re-merged tokens."""
    counts: PlanCounts

    @property
    def num_bins(self) -> int:
        return len(self.bin_starts) - 1

    def bin_tokens(self) -> NDArray[np.int64]:
        """(B,) tokens in each bin, padding not counted."""
        spans = np.concatenate([[0], np.cumsum(self.span_length, dtype=np.int64)])
        pieces = spans[self.span_starts]
        return np.diff(pieces[self.bin_starts])


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What a plan depends on beside the documents."""

    context: int
    seed: int
    fim: FimConfig | None = None
    max_segments: int | None = None
    """Most pieces in a bin: bounds the length of cu_seqlens. Default: one per 32 tokens, at least 16."""

    def __post_init__(self) -> None:
        if self.context < MIN_CONTEXT:
            raise MifyError(
                f"a context of {self.context} tokens is too short: sentinels and end-of-text tokens need room in it",
                f"give at least {MIN_CONTEXT}",
            )
        if not 0 <= self.seed < 1 << 64:
            raise MifyError(f"the seed {self.seed} does not fit 64 bits", "give a seed from 0 to 2^64 - 1")

    @property
    def segments(self) -> int:
        return self.max_segments if self.max_segments is not None else max(16, self.context // 32)


def plan_window(
    shards: TokenShards, tokenizer: Tokenizer, documents: Sequence[int], config: PlanConfig, epoch: int, window: int
) -> WindowPlan:
    """Plans the documents of one window. A pure function of its arguments.

    Args:
        documents: numbers in `shards`, in the order of the window.
        epoch: below 2^24. window: its number within the epoch, by which the order of the bins is keyed.
    """
    from mify.data.plan_ref import plan_window_ref

    return plan_window_ref(shards, tokenizer, documents, config, epoch, window)
