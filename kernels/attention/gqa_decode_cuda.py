"""Decode attention in CUDA (csrc/attention/gqa_decode_sm90.cu) for torch tensors: bfloat16 queries, bf16 or FP8
cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, launch


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
    q, k_cache, v_cache = (checks.aligned_rows(x) for x in (q, k_cache, v_cache))
    lengths = lengths.contiguous()
    columns = 1 if page_table is None else page_table.shape[1]
    if page_table is not None and page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    k_scale, v_scale = (x if x is None else x.contiguous() for x in (k_scale, v_scale))
    with torch.cuda.device(q.device):
        if num_splits == 0:
            num_splits = choose_splits(batch, kv_heads, page_size * columns, launch.processors(q))
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
            k_scale=0 if k_scale is None else k_scale.data_ptr(),
            v_scale=0 if v_scale is None else v_scale.data_ptr(),
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
            q_strides=(_stride(q, 0), _stride(q, 1)),
            out_strides=(_stride(out, 0), _stride(out, 1)),
            k_strides=(_stride(k_cache, 0), _stride(k_cache, 1), _stride(k_cache, 2)),
            v_strides=(_stride(v_cache, 0), _stride(v_cache, 1), _stride(v_cache, 2)),
            scale=scale,
            stream=stream,
        )
    return out


def _stride(x: Tensor, dim: int) -> int:
    """Along a dimension of one element it means nothing and may be odd, where rows must begin at 16 bytes."""
    return x.stride(dim) if x.shape[dim] > 1 else 0


def _arrivals(device: torch.device, stream: int, count: int) -> Tensor:
    counters = _counters.setdefault(device.index, Counters(device))
    return counters.take(stream, count, capturing=torch.cuda.is_current_stream_capturing())
