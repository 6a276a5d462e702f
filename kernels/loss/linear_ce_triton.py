"""Linear layer and cross-entropy on a GPU: the library's matrix products around the Triton softmax of `ce_triton`.

A throw-away chunk of logits is made by cuBLAS, turned into its gradient in place, and used by the two products of the
backward pass. At 65,536 classes in bf16 a chunk of 4,096 rows is 0.5 GiB, all that exists besides the gradients.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import ce_triton

NO_LABEL = -1 << 31
"""No row is without a label here: those have been taken out before."""


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
    rows, classes = hidden.shape[0], weight.shape[0]
    labels = labels.contiguous()
    losses = hidden.new_empty(rows, dtype=torch.float32)
    dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if gradients else hidden.new_empty(0)
    dweight = weight.new_zeros(weight.shape if weight_gradient else 0, dtype=torch.float32)
    buffer = hidden.new_empty((min(chunk, rows), classes))
    for start in range(0, rows, chunk):
        part = slice(start, min(rows, start + chunk))
        logits = torch.mm(hidden[part], weight.t(), out=buffer[: part.stop - start])
        losses[part] = ce_triton.loss_and_gradient_(logits, labels[part], NO_LABEL, z_loss, smoothing, gradients)
        if gradients:
            torch.mm(logits, weight, out=dhidden[part])
        if weight_gradient:
            _add_product_(dweight, logits.t(), hidden[part])
    return losses.sum(), dhidden, dweight


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in fp32, whatever the dtype of a and b: a narrow sum over chunks stalls."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda and _adds_to_fp32(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total += (a @ b).to(total.dtype)


@functools.lru_cache
def _adds_to_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a narrow product to an fp32 matrix: at first `out_dtype` asked for a narrow one."""
    total, one = torch.zeros((16, 16), device=device), torch.zeros((16, 16), dtype=dtype, device=device)
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True
