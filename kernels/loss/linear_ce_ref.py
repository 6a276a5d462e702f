"""Linear layer and cross-entropy in plain torch, in chunks of rows: the logits never exist whole."""

from __future__ import annotations

import torch
from torch import Tensor

from .ce_ref import as_classes


def forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float,
    smoothing: float,
    chunk: int,
    gradients: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the row losses, and with `gradients` its derivatives, all rows labelled.

    One buffer of (chunk, V) holds logits, then log-probabilities, then the gradient. The two matrix products of the
    backward pass run here, while the chunk is in the cache, so nothing of size N·V is kept or computed twice.

    Args:
        hidden: (N, d). weight: (V, d). labels: (N,) int64.
        weight_gradient: with `gradients`, that of weight, too; a frozen head costs no product for it.

    Returns:
        loss () fp32 (fp64 for fp64), dhidden (N, d) in the dtype of hidden, dweight (V, d) summed in that of loss;
        what is not asked for is empty.
    """
    rows, classes = hidden.shape[0], weight.shape[0]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    dhidden = torch.empty_like(hidden) if gradients else hidden.new_empty(0)
    dweight = (
        torch.zeros(weight.shape, dtype=wide, device=weight.device)
        if weight_gradient
        else hidden.new_empty(0, dtype=wide)
    )
    for start in range(0, rows, chunk):
        h = hidden[start : start + chunk]
        y, poison = (x[:, None] for x in as_classes(labels[start : start + chunk], classes, wide))
        logits = (h @ weight.t()).to(wide)
        at_label = logits.gather(1, y) + poison
        mean = logits.mean(-1, keepdim=True) if smoothing else None
        d = torch.log_softmax(logits, dim=-1)
        nll = d.gather(1, y) + poison
        lse = at_label - nll
        if mean is not None:
            loss += ((1 - smoothing) * -nll + smoothing * (lse - mean)).sum()
        else:
            loss -= nll.sum()
        if z_loss:
            loss += z_loss * lse.square().sum()
        if not gradients:
            continue
        d.exp_()
        if z_loss:
            d *= 1 + 2 * z_loss * lse
        if smoothing:
            d -= smoothing / classes
        d.scatter_add_(1, y, torch.full_like(lse, smoothing - 1) + poison)
        narrow = d.to(hidden.dtype)
        torch.mm(narrow, weight, out=dhidden[start : start + chunk])
        if not weight_gradient:
            continue
        if narrow.dtype == wide:
            dweight.addmm_(narrow.t(), h)
        else:
            # The partial product is rounded once; the sum over chunks stays wide, or long batches would stall in bf16.
            dweight += (narrow.t() @ h).to(wide)
    return loss, dhidden, dweight
