"""Linear layer and cross-entropy for CPUs, float32: torch's matrix products around the C++ softmax (csrc/fused).

A chunk of logits is made, turned into its gradient in place while a row is in the first-level cache, used and dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import cpu


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
    """As `linear_ce_ref.forward`."""
    from mify._core import kernels

    rows, classes = hidden.shape[0], weight.shape[0]
    labels = labels.contiguous()
    losses = hidden.new_empty(rows)
    dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if gradients else hidden.new_empty(0)
    dweight = weight.new_zeros(weight.shape if weight_gradient else 0)
    buffer = hidden.new_empty((min(chunk, rows), classes))
    for start in range(0, rows, chunk):
        part = slice(start, min(rows, start + chunk))
        count = part.stop - start
        logits = torch.mm(hidden[part], weight.t(), out=buffer[:count])
        kernels.softmax_loss(
            cpu.rows(logits), labels[part].data_ptr(), losses[part].data_ptr(), count, classes, z_loss, smoothing,
            gradients, cpu.threads(),
        )  # fmt: skip
        if gradients:
            torch.mm(logits, weight, out=dhidden[part])
        if weight_gradient:
            dweight.addmm_(logits.t(), hidden[part])
    return losses.sum(), dhidden, dweight
