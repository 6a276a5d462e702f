"""Cross-entropy in plain torch, row-wise."""

from __future__ import annotations

import torch
from torch import Tensor


def as_classes(labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The labels, with some class in place of what is none, and in `dtype` NaN for such rows, 0 for the others.

    On a GPU a label cannot be refused without waiting, and an index out of range would end the process.
    """
    inside = labels.clamp(0, classes - 1)
    return inside, torch.zeros_like(labels, dtype=dtype).masked_fill_(labels != inside, float("nan"))


def forward(logits: Tensor, labels: Tensor, z_loss: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Per-row loss and log-normalizer, both (N,) fp32 (fp64 for fp64). The loss of a label that is no class is NaN."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(wide, dim=-1)
    inside, poison = as_classes(labels, logits.shape[1], wide.dtype)
    loss = lse - wide.gather(1, inside[:, None]).squeeze(1) + poison
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * (lse - wide.mean(-1))
    return loss + z_loss * lse.square() if z_loss else loss, lse


def backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, z_loss: float, smoothing: float) -> Tensor:
    """dlogits (N, V) in the dtype of logits for `grad` (N,)."""
    inside, poison = as_classes(labels, logits.shape[1], lse.dtype)
    d = torch.softmax(logits.to(lse.dtype), -1) * (1 + 2 * z_loss * lse + poison)[:, None] - smoothing / logits.shape[1]
    d.scatter_add_(1, inside[:, None], torch.full_like(lse, smoothing - 1)[:, None])
    return (d * grad[:, None]).to(logits.dtype)
