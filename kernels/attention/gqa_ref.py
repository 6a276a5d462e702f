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
    """Attention of each segment bounds[i]:bounds[i+1]. Differentiable by autograd.

    Args:
        q: (T, Hq, D). k, v: (T, Hkv, D).

    Returns:
        out (T, Hq, D) in the dtype of q and the natural-logarithm normalizers (Hq, T) in fp32 (fp64 for fp64).
    """
    group = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    outs, normalizers = [], []
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        qs = q[start:end].transpose(0, 1)
        ks = k[start:end].transpose(0, 1).repeat_interleave(group, dim=0)
        vs = v[start:end].transpose(0, 1).repeat_interleave(group, dim=0)
        scores = (qs @ ks.transpose(1, 2)).to(wide) * scale
        scores = scores.masked_fill(~visible(end - start, causal, window, q.device), float("-inf"))
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse[..., None]).to(q.dtype)
        outs.append((weights @ vs).transpose(0, 1))
        normalizers.append(lse)
    if not outs:
        return torch.zeros_like(q), q.new_zeros((q.shape[1], 0), dtype=wide)
    return torch.cat(outs), torch.cat(normalizers, dim=1)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) by autograd through `forward`, recomputed."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, _ = forward(*leaves, bounds, causal, window, scale)
        if not out.requires_grad:  # no tokens
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dq, dk, dv = torch.autograd.grad(out, leaves, grad)
    return dq, dk, dv


def decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """One new token per sequence against its cached keys.

    Args:
        q: (B, Hq, D). k_cache, v_cache: (B, S, Hkv, D). lengths: (B,) keys in use, the new token's included.

    Returns:
        (B, Hq, D) in the dtype of q.
    """
    batch, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    grouped = q.view(batch, kv_heads, heads // kv_heads, dim)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bhgd,bshd->bhgs", grouped, k_cache).to(wide) * scale
    unused = torch.arange(k_cache.shape[1], device=q.device)[None, :] >= lengths[:, None]
    weights = torch.softmax(scores.masked_fill(unused[:, None, None, :], float("-inf")), dim=-1).to(q.dtype)
    return torch.einsum("bhgs,bshd->bhgd", weights, v_cache).reshape(batch, heads, dim)
