# mypy: disable-error-code="no-untyped-def"
"""SwiGLU that writes FP8, in Triton: a tile is read once and written in one layout or both."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import Case
from mify.kernels.quantize.fp8 import Parts
from mify.kernels.quantize.quantize_triton import KINDS, by_tiles, finish_tile, tile_case

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
    finish_tile(
        y, row, first_column, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr, given_ptr,
        largest_ptr, BLOCKS, TRANSPOSE, EMULATE,
    )  # fmt: skip


def forward(gate: Tensor, up: Tensor, scale: Tensor | None, transpose: bool) -> Parts:
    """As `glu_fp8_ref.forward`."""
    return by_tiles("glu_fp8", _kernel, (gate, up), scale, transpose)


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead, in bf16."""
    inputs = {"gate_ptr": "*bf16", "up_ptr": "*bf16", "gate_row": "i32*16", "up_row": "i32*16"}
    return [tile_case("glu_fp8", _kernel, inputs, *which) for which in KINDS]
