"""Grouped-query attention over packed documents in plain torch: the oracle of every other backend."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def visible(length: int, causal: bool, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: may query i see key j? window 0 is unlimited; a causal window counts the token itself."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    mask = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window:
        mask &= distance.abs() < window
    return mask


def forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: list[int], causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of each segment bounds[i]:bounds[i+1].

    Args:
        q: (T, Hq, D). k, v: (T, Hkv, D).

    Returns:
        out (T, Hq, D) in the dtype of q and the normalizers (Hq, T) in fp32 (fp64 for fp64).
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.promote_types(q.dtype, torch.float32))
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        part = slice(start, end)
        scores = _scores(q[part], k[part], causal, window, scale)
        lse[:, part] = torch.logsumexp(scores, -1)
        weights = torch.softmax(scores, -1).to(q.dtype)
        out[part] = (weights @ _heads_first(v[part], q.shape[1])).transpose(0, 1)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv).

    With P = softmax(S): dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − rowsum(P ∘ dP)), dQ = dS K, dK = dSᵀ Q.
    """
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    heads, kv_heads = q.shape[1], k.shape[1]
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        part = slice(start, end)
        weights = torch.softmax(_scores(q[part], k[part], causal, window, scale), -1)
        qs, ks, vs, dout = (_heads_first(x[part], heads) for x in (q, k, v, grad))
        dweights = (dout @ vs.transpose(1, 2)).to(weights.dtype)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * scale
        dscores, weights = dscores.to(q.dtype), weights.to(q.dtype)
        dq[part] = (dscores @ ks).transpose(0, 1)
        for target, value in ((dk, dscores.transpose(1, 2) @ qs), (dv, weights.transpose(1, 2) @ dout)):
            target[part] = value.reshape(kv_heads, heads // kv_heads, *value.shape[1:]).sum(1).transpose(0, 1)
    return dq, dk, dv


def _heads_first(x: Tensor, heads: int) -> Tensor:
    return x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0)


def _scores(q: Tensor, k: Tensor, causal: bool, window: int, scale: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.transpose(0, 1) @ _heads_first(k, q.shape[1]).transpose(1, 2)).to(wide) * scale
    return scores.masked_fill(~visible(q.shape[0], causal, window, q.device), float("-inf"))
