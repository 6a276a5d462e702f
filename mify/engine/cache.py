"""Keys and values of all requests in pages of one pool, and how a forward pass reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mify.kernels import gqa_attention, gqa_decode, gqa_extend

from .pages import SCRATCH

if TYPE_CHECKING:
    from mify.model import Model

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0


@dataclass(slots=True)
class Pass:
    """What one forward pass does with the cache: its tokens stand in three groups, each of which may be empty.

    Args:
        slots: (T,) int64, where each token's key and value go: page · page_size + place.
        rows: tokens of the first group. Each is looked at by itself: it sees `row_lengths` (rows,) int32 keys through
            `row_table` (rows, columns) int32. Several may belong to one request.
        chunks: tokens of the second group, several of each request behind others that are cached already: bounds
            `chunk_bounds`, keys `chunk_lengths`, pages `chunk_table`, at most `chunk_longest` tokens.
        fresh_bounds: the rest, whole beginnings of requests, packed; at most `fresh_longest` tokens each.
    """

    slots: Tensor
    rows: int
    row_lengths: Tensor
    row_table: Tensor
    chunks: int = 0
    chunk_bounds: Tensor | None = None
    chunk_lengths: Tensor | None = None
    chunk_table: Tensor | None = None
    chunk_longest: int = 0
    fresh_bounds: Tensor | None = None
    fresh_longest: int = 0


class PagedCache:
    """The pool.

    Args:
        model: whose keys and values. pages: to give out; one more is there for rows without a request.
        page_size: tokens a page. max_sequences: rows of the page table, and one more for rows without a request.
        dtype: of the stored values: that of the weights, or float8_e4m3fn.
        scales: (2, layers, Hkv) fp32 for an FP8 cache: what is stored of keys and values is their quotient by these;
            None is 1. What lies beyond ±448 saturates.
    """

    def __init__(
        self,
        model: Model,
        pages: int,
        page_size: int,
        max_sequences: int,
        *,
        dtype: torch.dtype,
        scales: Tensor | None = None,
    ) -> None:
        config, device = model.config, model.head_weight.device
        shape = (config.num_layers, pages + 1, page_size, config.num_kv_heads, config.head_dim)
        self.page_size, self.dtype = page_size, dtype
        # Not cleared: nothing is read before it was written, and memory that is not used costs nothing so.
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.scales = None if scales is None or dtype != FP8 else scales.to(device, torch.float32)
        columns = -(-config.context // page_size)
        self._host_table = np.full((max_sequences + 1, columns), SCRATCH, np.int32)
        self._pending: list[tuple[int, int, int]] = []
        self.table = torch.from_numpy(self._host_table)
        if device.type != "cpu":
            self.table = self.table.to(device)
        self.idle_row = max_sequences
        self.now: Pass | None = None

    def assign(self, row: int, column: int, pages: Sequence[int]) -> None:
        """Says that the pages of the request in `row` go on with `pages` from `column` on."""
        self._host_table[row, column : column + len(pages)] = pages
        if self.table.device.type != "cpu":
            self._pending += [(row, column + index, page) for index, page in enumerate(pages)]

    def flush(self) -> None:
        """Brings what was assigned to the device."""
        if self._pending:
            rows, columns, pages = torch.tensor(self._pending, device=self.table.device).unbind(1)
            self.table[rows, columns] = pages.to(torch.int32)
            self._pending.clear()

    def slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where the tokens at `positions` (T,) of the requests in `rows` (T,) lie, both int64."""
        pages = self.table[rows, positions // self.page_size]
        return pages.long() * self.page_size + positions % self.page_size

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, impl: str
    ) -> Tensor:
        """Stores k and v (T, Hkv, D) of one layer and returns the attention of q (T, Hq, D) over all that is stored."""
        now = self.now
        assert now is not None
        k, v = self._store(layer, k, v, now.slots, back=now.fresh_bounds is not None)
        keys, values = self.keys[layer], self.values[layer]
        k_scale, v_scale = (None, None) if self.scales is None else (self.scales[0, layer], self.scales[1, layer])
        parts: list[Tensor] = []
        if now.rows:
            parts.append(
                gqa_decode(
                    q[: now.rows], keys, values, now.row_lengths, page_table=now.row_table, k_scale=k_scale,
                    v_scale=v_scale, impl=impl,
                )
            )  # fmt: skip
        behind = now.rows + now.chunks
        if now.chunks:
            assert now.chunk_bounds is not None
            assert now.chunk_lengths is not None
            assert now.chunk_table is not None
            parts.append(
                gqa_extend(
                    q[now.rows : behind], keys, values, now.chunk_bounds, now.chunk_lengths, now.chunk_table,
                    now.chunk_longest, k_scale=k_scale, v_scale=v_scale, impl=impl,
                )
            )  # fmt: skip
        if now.fresh_bounds is not None:
            parts.append(
                gqa_attention(q[behind:], k[behind:], v[behind:], now.fresh_bounds, now.fresh_longest, impl=impl)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _store(self, layer: int, k: Tensor, v: Tensor, slots: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        """Stores k and v, and returns them as the cache has them, so that no token sees what others will not.

        Args:
            back: whether what is returned is used; otherwise it may be k and v as they came.
        """
        kept = []
        for index, (pool, x) in enumerate(((self.keys[layer], k), (self.values[layer], v))):
            flat = pool.view(-1, *pool.shape[2:])
            if self.dtype != FP8:
                flat.index_copy_(0, slots, x)
                kept.append(x)
                continue
            scale = None if self.scales is None else self.scales[index, layer][:, None]
            wide = x.float() if scale is None else x.float() / scale
            stored = wide.clamp(-_FP8_MAX, _FP8_MAX).to(FP8)
            flat.view(torch.uint8).index_copy_(0, slots, stored.view(torch.uint8))
            if back:
                wide = stored.float() if scale is None else stored.float() * scale
            kept.append(wide.to(x.dtype))
        return kept[0], kept[1]
