# mypy: disable-error-code="no-untyped-def"
"""SwiGLU that writes FP8, in Triton: a tile is read once and written in one layout or both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import chosen, dense, on
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Parts
from mify.kernels.quantize.quantize_triton import (
    COLUMNS,
    KINDS,
    kind,
    launches,
    store_tile,
    tile_case,
    tile_rows,
    with_amax,
)

from .glu_triton import swiglu


@triton.jit
def _kernel(
    gate_ptr,  # (rows, size)
    up_ptr,  # (rows, size)
    data_ptr,
    scale_ptr,
    data_t_ptr,
    scale_t_ptr,
    given_ptr,  # the delayed scale
    largest_ptr,  # (programs,) fp32: the largest value of each tile, with a delayed scale
    gate_row,
    up_row,
    rows,
    size,
    rows_padded,
    BLOCKS: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first_column = tl.program_id(1) * 128
    column = (first_column + tl.arange(0, 128))[None, :]
    inside = (row < rows)[:, None] & (column < size)
    gate = tl.load(gate_ptr + row[:, None] * gate_row + column, mask=inside, other=0.0)
    up = tl.load(up_ptr + row[:, None] * up_row + column, mask=inside, other=0.0)
    y = swiglu(gate, up).to(tl.float32)
    inverse_scale = 1.0
    if not BLOCKS:
        inverse_scale = tl.div_rn(1.0, tl.load(given_ptr))
        program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(largest_ptr + program, tl.max(tl.max(tl.abs(y), 1), 0))
    store_tile(
        y, row, first_column, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr, inverse_scale,
        BLOCKS, TRANSPOSE, EMULATE,
    )  # fmt: skip


def forward(gate: Tensor, up: Tensor, scale: Tensor | None, transpose: bool) -> Parts:
    """As `glu_fp8_ref.forward`."""
    gate, up = dense(gate), dense(up)
    parts = fp8.empty(gate, scale is None, transpose)
    tokens, size = gate.shape
    if not gate.numel():
        return (*parts[:4], torch.zeros_like(parts[4]))
    rows = tile_rows(scale is None, transpose)
    grid = (triton.cdiv(fp8.padded(tokens) if transpose else tokens, rows), triton.cdiv(size, COLUMNS))
    largest = gate.new_empty(grid[0] * grid[1] if scale is not None else 0, dtype=torch.float32)
    with on(gate):
        _kernel[grid](
            gate, up, *parts[:4], scale, largest, gate.stride(0), up.stride(0), tokens, size, fp8.padded(tokens),
            BLOCKS=scale is None, TRANSPOSE=transpose, EMULATE=not gate.is_cuda, BLOCK_R=rows,
            **chosen(kind("glu_fp8", scale is None, transpose), gate, size, launches(rows)), **LAUNCH,
        )  # fmt: skip
    return with_amax(parts, largest, scale)


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead, in bf16."""
    inputs = {"gate_ptr": "*bf16", "up_ptr": "*bf16", "gate_row": "i32*16", "up_row": "i32*16"}
    return [tile_case("glu_fp8", _kernel, inputs, *which) for which in KINDS]
