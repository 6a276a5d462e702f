"""FP8 products through torch's scaled matmul: cuBLASLt on a GPU, oneDNN or plain code on a CPU.

Blocks (1×128 by 1×128) run on Hopper alone, with cuBLASLt of CUDA 12.9 or newer. `use_fast_accum` stays off: Hopper's
tensor cores keep some 14 bits of the running sum otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import checks, dispatch


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why torch's scaled matmul cannot take these tensors, or ""."""
    odd = [f"{name.upper()} = {shape[name]}" for name in ("n", "k") if shape[name] % 16]
    if odd:
        return f"it takes multiples of 16, not {' and '.join(odd)}"
    if device.kind != "cuda":
        return "on a CPU the emulation runs, whose order of summation is known"
    if device.capability < (8, 9):
        return f"FP8 needs compute capability 8.9, this GPU has {'.'.join(map(str, device.capability))}"
    if shape["blocks"]:
        if device.capability[0] != 9:
            return f"block scales run on compute capability 9 alone, this GPU has {device.capability[0]}"
        cuda = torch.version.cuda
        if cuda is None or tuple(map(int, cuda.split(".")[:2])) < (12, 9):
            return f"block scales need CUDA 12.9, this torch is built with {cuda}"
    return ""


def forward(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """As `gemm_ref.forward`."""
    a, b = checks.aligned_rows(a), checks.aligned_rows(b)
    recipe = F.ScalingType.TensorWise if scale_a.dim() == 0 else F.ScalingType.BlockWise1x128
    if scale_a.dim():
        scale_a, scale_b = columns_first(scale_a), columns_first(scale_b)
    return F.scaled_mm(a, b.t(), scale_a, recipe, scale_b, recipe, output_dtype=dtype)


def columns_first(scale: Tensor) -> Tensor:
    """`scale` (rows, blocks) with strides (1, rows), copied where it lies otherwise."""
    return scale if scale.stride(0) == 1 and scale.stride(1) in (1, scale.shape[0]) else scale.t().contiguous().t()
