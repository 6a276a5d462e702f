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
from mify.data.philox import threshold
from mify.data.shards import TokenShards
from mify.errors import MifyError
from mify.special_tokens import FILE_SEP
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
        if self.max_segments is not None and self.max_segments < 1:
            raise MifyError(f"max_segments is {self.max_segments}", "give a positive number, or None")
        if not 0 <= self.seed < 1 << 64:
            raise MifyError(f"the seed {self.seed} does not fit 64 bits", "give a seed from 0 to 2^64 - 1")

    @property
    def segments(self) -> int:
        return self.max_segments if self.max_segments is not None else max(16, self.context // 32)


def check_nodes(shards: TokenShards, fim: FimConfig | None) -> None:
    """Raises MifyError where syntax nodes are asked for and the shards, having documents to permute, hold none."""
    if fim is None or fim.rate == 0 or fim.span != "syntax" or shards.nodes is not None:
        return
    if any(shards.meta["tokens_by_domain"].get(domain) for domain in fim.domains):
        raise MifyError(
            f"{shards.folder} has no syntax nodes, which fim.span = 'syntax' needs",
            "write the shards again with `mify tokenize --syntax`, or use another span",
        )


def plan_window(
    shards: TokenShards,
    tokenizer: Tokenizer,
    documents: Sequence[int] | NDArray[np.int64],
    config: PlanConfig,
    epoch: int,
    window: int,
    threads: int = 1,
) -> WindowPlan:
    """Plans the documents of one window. A pure function of its arguments (`threads` do not change the result).

    Args:
        documents: numbers in `shards`, in the order of the window.
        epoch: below 2^24. window: its number within the epoch, by which the order of the bins is keyed.

    Raises: MifyError: no FIM tokens in the vocabulary, a pre-tokenizer that is not qwen2's, a damaged shard.
    """
    from mify._core import packing

    fim = config.fim
    domains = [shards.domain_names.index(name) for name in fim.domains if name in shards.domain_names] if fim else []
    if tokenizer.native is None:
        raise MifyError(
            "the plan cannot cut text of this tokenizer: its pre-tokenizer is another than qwen2's",
            "use a tokenizer that `mify tokenizer train` made",
        )
    sentinels = [tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id, tokenizer.eot_id]
    if None in sentinels:
        if fim is not None and fim.rate > 0:
            raise MifyError("this vocabulary has no FIM tokens", "set the FIM rate to 0, or use one that has them")
        domains = []
    check_nodes(shards, fim)
    documents = np.asarray(documents, np.int64)
    try:
        arrays, counts = packing.plan_window(
            tokenizer.native,
            shards.native,
            documents,
            context=config.context,
            max_pieces=config.segments,
            seed=config.seed,
            epoch=epoch,
            window=window,
            corpus_key=shards.key,
            fim_domains=sum(1 << domain for domain in domains),
            rate_threshold=threshold(fim.rate) if fim else 0,
            spm_threshold=threshold(fim.spm_rate) if fim else 0,
            cuts=fim.span if fim is not None else "uniform",
            sentinels=[0 if index is None else index for index in sentinels],
            file_separator=tokenizer.special.get(FILE_SEP, -1),
            threads=threads,
        )
    except ValueError as error:
        raise MifyError(
            f"{shards.folder}: {error}", "verify the shards: mify tokenize --inspect FOLDER --verify"
        ) from None
    bins = len(arrays["bin_starts"]) - 1
    padding = bins * config.context - counts["tokens"]
    return WindowPlan(**arrays, counts=PlanCounts(documents=len(documents), bins=bins, padding=padding, **counts))
