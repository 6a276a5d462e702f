"""Rows from a plan: a gather of the shards' tokens with a few patches between them, and nothing else.

`PackedRows` is what travels to a device (2 bytes a token, a loss bit, the segments' starts); `PackedBatch` is what it
becomes there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mify.data.plan import WindowPlan
from mify.data.shards import TokenShards

if TYPE_CHECKING:
    import torch

    from mify.data.batch import PackedBatch

Loss = Literal["all", "middle"]
"""Which tokens carry loss as targets. `all`: every token but a segment's first (nothing predicts it), the FIM
sentinels (where a random cut lies cannot be predicted) and padding. `middle`: of permuted pieces only the middle and
its end-of-text token; plain pieces as in `all`."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """R rows of `context` tokens on the host."""

    tokens: NDArray[Any]
    """(R, context) uint16, or uint32 where the vocabulary passes 65,536."""
    loss_bits: NDArray[np.uint8]
    """(R, ceil(context / 8)) one bit a token, lowest bit first: the token is a target that carries loss."""
    segment_starts: NDArray[np.int32]
    """(sum of segments,) first token of each segment in its row; padding at a row's end is a segment of its own."""
    row_starts: NDArray[np.int64]
    """(R + 1,) first entry of each row in `segment_starts`."""
    used: NDArray[np.int32]
    """(R,) tokens in each row, padding not counted."""

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    def to_batch(
        self, max_segments: int, sources: Sequence[str] = (), device: torch.device | str | None = None
    ) -> PackedBatch:
        """Widens to what the model eats: on the host, or on a device, to which 2 bytes a token travel instead of 24.

        Args:
            max_segments: most segments in a row, padding's included; cu_seqlens has R * max_segments + 1 entries.
        """
        import torch

        from mify.data.batch import PackedBatch
        from mify.kernels.packing.fim_pack import unpack_rows

        moved = (
            torch.from_numpy(array).to(device or "cpu")
            for array in (self.tokens, self.loss_bits, self.segment_starts, self.row_starts)
        )
        batch = unpack_rows(*moved, cu_length=len(self.tokens) * max_segments + 1)
        return PackedBatch(*batch, self.context, tuple(sources))


def make_rows(
    plan: WindowPlan,
    bins: Sequence[int] | NDArray[np.int64],
    shards: TokenShards,
    *,
    context: int,
    pad_id: int,
    sentinels: Collection[int] = (),
    loss: Loss = "all",
    skip: Collection[int] = (),
    threads: int = 1,
) -> PackedRows:
    """The rows of some of a plan's bins.

    Args:
        sentinels: ids of the FIM sentinels, which carry no loss.
        skip: keys (64 bits of the id) of documents that are replaced by padding without loss; the plan, and so
            everything else, stays as it is.
    """
    from mify._core import packing

    return PackedRows(
        *packing.make_rows(
            shards.native,
            plan.bin_starts,
            plan.piece_document,
            plan.span_starts,
            plan.span_source,
            plan.piece_mode,
            plan.piece_middle,
            plan.span_length,
            plan.patches,
            np.asarray(bins, np.int64),
            context=context,
            pad_id=pad_id,
            sentinels=sorted(sentinels),
            middle_only=loss == "middle",
            skip=np.array(sorted(skip), np.uint64),
            threads=threads,
        )
    )


def padding_rows(count: int, context: int, pad_id: int, dtype: np.dtype[Any]) -> PackedRows:
    """Rows of nothing but padding: they fill the last batch of a stream that ends."""
    return PackedRows(
        np.full((count, context), pad_id, dtype),
        np.zeros((count, -(-context // 8)), np.uint8),
        np.zeros(count, np.int32),
        np.arange(count + 1, dtype=np.int64),
        np.zeros(count, np.int32),
    )


def concatenate(parts: Sequence[PackedRows]) -> PackedRows:
    """The rows of all parts, in order."""
    row_starts, base = [np.zeros(1, np.int64)], 0
    for part in parts:
        row_starts.append(part.row_starts[1:] + base)
        base += int(part.row_starts[-1])
    return PackedRows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.loss_bits for part in parts]),
        np.concatenate([part.segment_starts for part in parts]),
        np.concatenate(row_starts),
        np.concatenate([part.used for part in parts]),
    )
