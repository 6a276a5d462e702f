"""Cross-entropy in plain torch, row-wise."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(logits: Tensor, labels: Tensor, z_loss: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Per-row loss and log-normalizer, both (N,) fp32 (fp64 for fp64). Every label must be a class."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(wide, dim=-1)
    loss = lse - wide.gather(1, labels[:, None]).squeeze(1)
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * (lse - wide.mean(-1))
    return loss + z_loss * lse.square() if z_loss else loss, lse


def backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, z_loss: float, smoothing: float) -> Tensor:
    """dlogits (N, V) in the dtype of logits for `grad` (N,)."""
    d = torch.softmax(logits.to(lse.dtype), -1) * (1 + 2 * z_loss * lse)[:, None] - smoothing / logits.shape[1]
    d.scatter_add_(1, labels[:, None], torch.full_like(lse, smoothing - 1)[:, None])
    return (d * grad[:, None]).to(logits.dtype)
