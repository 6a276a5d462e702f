"""RMSNorm in C++ for CPUs (csrc/fused/rows.hpp), float32."""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import cpu


def forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `norm_ref.forward`."""
    from mify._core import kernels

    (x,) = cpu.dense(x)
    weight = weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    inverse = torch.empty((x.shape[0], 1), dtype=x.dtype)
    total = None
    if residual is not None:
        (residual,) = cpu.dense(residual)
        total = torch.empty(x.shape, dtype=x.dtype)
    kernels.norm_forward(
        cpu.rows(x), cpu.rows(residual), cpu.rows(total), weight.data_ptr(), cpu.rows(y), inverse.data_ptr(), eps,
        x.shape[0], x.shape[1], cpu.threads(),
    )  # fmt: skip
    return y, total, inverse


def backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """As `norm_ref.backward`."""
    from mify._core import kernels

    grad, x = cpu.dense(grad, x)
    if grad_total is not None:
        (grad_total,) = cpu.dense(grad_total)
    weight = weight.contiguous()
    dx, dweight = torch.empty(x.shape, dtype=x.dtype), torch.empty(weight.shape, dtype=x.dtype)
    kernels.norm_backward(
        cpu.rows(grad), cpu.rows(grad_total), cpu.rows(x), weight.data_ptr(), inverse.data_ptr(), cpu.rows(dx),
        dweight.data_ptr(), x.shape[0], x.shape[1], cpu.threads(),
    )  # fmt: skip
    return dx, dweight
