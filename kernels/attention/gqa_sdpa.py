"""Grouped-query attention over packed documents through torch's own flash attention on a CPU.

Segments of equal length run as one batch, so a row that is one document costs one call for all such rows. Measured
on two Zen 3 cores at 8 rows of 512, 4/2 heads of 64: see DESIGN.md for the alternatives.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """As `gqa_ref.forward`, without a window."""
    q, k, v = _rows_dense(q, k, v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.promote_types(q.dtype, torch.float32))
    for start, count, length in _runs(bounds):
        part = slice(start, start + count * length)
        o, l = _forward(
            _batch(q[part], count, length),
            _expand(k[part], count, length, q.shape[1]),
            _expand(v[part], count, length, q.shape[1]),
            0.0,
            causal,
            scale=scale,
        )
        out[part] = o.transpose(1, 2).reshape(-1, *q.shape[1:])
        lse[:, part] = l.transpose(0, 1).reshape(q.shape[1], -1)
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: list[int],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)."""
    q, k, v = _rows_dense(q, k, v)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    for start, count, length in _runs(bounds):
        part = slice(start, start + count * length)
        a, b, c = _backward(
            _batch(grad[part], count, length),
            _batch(q[part], count, length),
            _expand(k[part], count, length, q.shape[1]),
            _expand(v[part], count, length, q.shape[1]),
            _batch(out[part], count, length),
            lse[:, part].reshape(-1, count, length).transpose(0, 1).contiguous(),
            0.0,
            causal,
            scale=scale,
        )
        dq[part] = a.transpose(1, 2).reshape(-1, *q.shape[1:])
        for target, value in ((dk, b), (dv, c)):
            value = value.view(count, -1, group, length, value.shape[-1]).sum(2)
            target[part] = value.transpose(1, 2).reshape(-1, *target.shape[1:])
    return dq, dk, dv


def _runs(bounds: list[int]) -> list[tuple[int, int, int]]:
    """(start, count, length) of each run of neighbouring segments of one length; empty segments are skipped."""
    runs: list[tuple[int, int, int]] = []
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, end - start)
        else:
            runs.append((start, 1, end - start))
    return runs


def _rows_dense(*tensors: Tensor) -> list[Tensor]:
    # torch's kernel reads the last dimension as if its stride were 1, and gives wrong numbers where it is not.
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _batch(x: Tensor, count: int, length: int) -> Tensor:
    return x.view(count, length, *x.shape[1:]).transpose(1, 2)


def _expand(x: Tensor, count: int, length: int, heads: int) -> Tensor:
    return _batch(x, count, length).repeat_interleave(heads // x.shape[1], dim=1)
