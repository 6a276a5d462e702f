"""FP8 products in plain torch: the exact emulation, on any device.

E4M3 values are widened to fp32, where their products are exact, and summed in fp32: what the tensor cores compute, but
for the order of the sum. Slower than a bf16 product; it is here so that recipes can be tried and tested anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels.quantize.fp8 import BLOCK


def forward(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """a (M, K) · bᵀ (K, N), see `mify.kernels.gemm.gemm`."""
    a, b = a.to(torch.float32), b.to(torch.float32)
    if scale_a.dim() == 0:
        return ((a @ b.t()) * (scale_a * scale_b)).to(dtype)
    total = a.new_zeros((a.shape[0], b.shape[0]))
    for index in range(scale_a.shape[1]):
        part = slice(index * BLOCK, (index + 1) * BLOCK)
        # Both scales multiply the block's sum, as in the tensor core's epilogue: not the values before it.
        total.addcmul_(a[:, part] @ b[:, part].t(), scale_a[:, index, None] * scale_b[None, :, index])
    return total.to(dtype)
