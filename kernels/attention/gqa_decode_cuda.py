"""Decode attention in CUDA (csrc/attention/gqa_decode_sm90.cu) for torch tensors: bfloat16 queries, bf16 or FP8
cache.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


class Counters:
    """Counters of arrived blocks of launches that split keys: zero before and after each, the last block clears them.

    Launches that may run at the same time must not share counters. Launches on one stream follow each other and share;
    a launch that is captured gets counters of its own, since its graph may be replayed beside anything. Those come from
    a pool that earlier launches left zeroed, because what is zeroed during a capture is zeroed again by each replay: a
    launch more. Nothing is ever freed, graphs keep addresses.
    """

    def __init__(self, device: torch.device, pool: int = 1 << 20) -> None:
        self._device = device
        self._size = pool
        self._pool: Tensor | None = None
        self._taken = 0
        self._by_stream: dict[int, list[Tensor]] = {}
        self._kept: list[Tensor] = []

    def take(self, stream: int, count: int, *, capturing: bool) -> Tensor:
        """`count` int32 zeros for a launch on `stream`."""
        if capturing:
            if self._pool is None or self._taken + count > self._size:
                self._kept.append(torch.zeros(count, dtype=torch.int32, device=self._device))
                return self._kept[-1]
            self._taken += count
            return self._pool[self._taken - count : self._taken]
        if self._pool is None or self._taken > self._size // 2:
            if self._pool is not None:
                self._kept.append(self._pool)
            self._pool, self._taken = torch.zeros(self._size, dtype=torch.int32, device=self._device), 0
        mine = self._by_stream.setdefault(stream, [])
        if not mine or mine[-1].numel() < count:
            mine.append(torch.zeros(max(count, 1024), dtype=torch.int32, device=self._device))
        return mine[-1]


_counters: dict[int, Counters] = {}


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    num_splits: int,
) -> Tensor:
    """As `gqa_decode.gqa_decode`, arguments checked there. Launches on torch's current stream of the device of q."""
    from mify._cuda import gqa_decode

    from .gqa_decode import choose_splits

    batch, heads, dim = q.shape
    pages, page_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    q, lengths = _rows_at_16_bytes(q), lengths.contiguous()
    k_cache, v_cache = _rows_at_16_bytes(k_cache), _rows_at_16_bytes(v_cache)
    columns = 1 if page_table is None else page_table.shape[1]
    if page_table is not None and page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    with torch.cuda.device(q.device):
        if num_splits == 0:
            num_splits = choose_splits(batch, kv_heads, page_size * columns, _processors(q.device.index))
        stream = torch.cuda.current_stream().cuda_stream
        out = torch.empty((batch, heads, dim), dtype=q.dtype, device=q.device)
        partials = torch.empty(
            batch * heads * num_splits * (dim + 2) if num_splits > 1 else 0, dtype=torch.float32, device=q.device
        )
        arrivals = _arrivals(q.device, stream, batch * kv_heads) if num_splits > 1 else None
        gqa_decode(
            q=q.data_ptr(),
            out=out.data_ptr(),
            k=k_cache.data_ptr(),
            v=v_cache.data_ptr(),
            lengths=lengths.data_ptr(),
            page_table=0 if page_table is None else page_table.data_ptr(),
            k_scale=0 if k_scale is None else k_scale.contiguous().data_ptr(),
            v_scale=0 if v_scale is None else v_scale.contiguous().data_ptr(),
            partials=partials.data_ptr() if num_splits > 1 else 0,
            arrivals=0 if arrivals is None else arrivals.data_ptr(),
            kv_type="bf16" if k_cache.dtype == torch.bfloat16 else "fp8_e4m3",
            head_dim=dim,
            batch=batch,
            kv_heads=kv_heads,
            group=group,
            num_splits=num_splits,
            num_pages=pages,
            page_size=page_size,
            table_columns=columns,
            table_stride=0 if page_table is None else page_table.stride(0),
            q_strides=(q.stride(0), q.stride(1)),
            out_strides=(out.stride(0), out.stride(1)),
            k_strides=_first_three(k_cache),
            v_strides=_first_three(v_cache),
            scale=scale,
            stream=stream,
        )
    return out


def _rows_at_16_bytes(x: Tensor) -> Tensor:
    """`x`, copied only where its rows do not begin at multiples of 16 bytes or are not contiguous."""
    element = x.element_size()
    fits = x.stride(-1) == 1 and x.data_ptr() % 16 == 0
    fits = fits and all(
        stride * element % 16 == 0 for stride, size in zip(x.stride()[:-1], x.shape, strict=False) if size > 1
    )
    if not fits:
        return x.contiguous()
    # A stride along a dimension of one element means nothing and may be odd.
    return x if all(s * element % 16 == 0 for s in x.stride()[:-1]) else x.contiguous()


def _first_three(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


@functools.lru_cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _arrivals(device: torch.device, stream: int, count: int) -> Tensor:
    counters = _counters.setdefault(device.index, Counters(device))
    return counters.take(stream, count, capturing=torch.cuda.is_current_stream_capturing())
