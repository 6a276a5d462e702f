"""RMSNorm that writes FP8 in both layouts in CUDA (csrc/norm/norm_fp8_sm90.cu).

A cluster of thread blocks holds 128 rows, so every byte moves once, 8 an element with a residual. The Triton kernel
reads its rows twice, the second time from the cache as far as that reaches: 8 to 10.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from mify.kernels import checks, dispatch
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Parts

COLUMNS, MOST_COLUMNS = fp8.BLOCK, 6144


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    if device.kind != "cuda":
        return "it runs on a GPU"
    if device.capability < (9, 0):
        return f"it needs compute capability 9.0, this GPU has {'.'.join(map(str, device.capability))}"
    if importlib.util.find_spec("mify._cuda") is None:
        return "mify._cuda is not built (no CUDA compiler was found when mify was installed)"
    if dtype != torch.bfloat16:
        return f"it is for bfloat16, not {dtype}"
    if not shape["transpose"]:
        return "it is for both layouts: one needs no more than a row at a time"
    if shape["size"] % COLUMNS or shape["size"] > MOST_COLUMNS:
        return f"it takes a multiple of {COLUMNS} features up to {MOST_COLUMNS}, not {shape['size']}"
    return ""


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, scale: Tensor | None, transpose: bool
) -> tuple[Parts, Tensor | None, Tensor]:
    """As `norm_fp8_ref.forward`, on torch's current stream of the device of x; `transpose` must be set."""
    from mify._cuda import norm_fp8, norm_fp8_cluster

    assert transpose
    tokens, size = x.shape
    with torch.cuda.device(x.device):
        x = checks.aligned_rows(x)
        weight = checks.aligned_rows(weight if weight.dtype == x.dtype else weight.float())
        parts = fp8.empty(x, scale is None, True)
        inverse = x.new_empty((tokens, 1), dtype=torch.float32)
        total = None
        if residual is not None:
            residual = checks.aligned_rows(residual)
            total = torch.empty_like(x, memory_format=torch.contiguous_format)
        if not tokens:
            return (*parts[:4], torch.zeros_like(parts[4])), total, inverse
        programs = fp8.padded(tokens) // fp8.BLOCK * norm_fp8_cluster(size)
        largest = x.new_empty(programs if scale is not None else 0, dtype=torch.float32)
        data, scales, data_t, scales_t, _ = parts
        norm_fp8(
            x=x.data_ptr(),
            residual=0 if residual is None else residual.data_ptr(),
            total=0 if total is None else total.data_ptr(),
            weight=weight.data_ptr(),
            inverse=inverse.data_ptr(),
            data=data.data_ptr(),
            scale=scales.data_ptr(),
            data_t=data_t.data_ptr(),
            scale_t=scales_t.data_ptr(),
            delayed=0 if scale is None else scale.data_ptr(),
            largest=largest.data_ptr(),
            x_row=_row(x),
            residual_row=0 if residual is None else _row(residual),
            rows=tokens,
            size=size,
            weight_is_float=weight.dtype == torch.float32,
            eps=eps,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return fp8.with_amax(parts, largest, scale), total, inverse


def _row(x: Tensor) -> int:
    """The distance of rows; of one row it means nothing and may be odd."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]
