# mypy: disable-error-code="no-untyped-def"
"""Quantization to E4M3 in Triton: what the epilogues of other kernels call, and a kernel that only quantizes.

A tile of 128 tokens by 128 features holds whole blocks of both layouts, so one read gives both.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on

from . import fp8
from .fp8 import Parts

COLUMNS = fp8.BLOCK
_LARGEST = tl.constexpr(fp8.LARGEST)
_SMALLEST_AMAX = tl.constexpr(fp8.SMALLEST_AMAX)


@triton.jit
def to_e4m3(scaled, EMULATE: tl.constexpr):
    """fp32 to the nearest E4M3 value, ties to even, saturating; NaN stays NaN.

    The hardware's conversion does all of it. The interpreter's rounds halves away from zero and loses a carry, so there
    (EMULATE) the value is first rounded to E4M3's grid, and the conversion is exact.
    """
    scaled = tl.clamp(scaled, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL)
    if EMULATE:
        bits = scaled.to(tl.int32, bitcast=True)
        sign = bits & -0x80000000
        # The grid's spacing is 2^(exponent − 3), at least 2^−9 (subnormals). Adding 1.5 · 2^23 of it rounds to it.
        shift = ((tl.maximum((bits >> 23) & 0xFF, 121) + 20) << 23) | 0x400000
        shift = shift.to(tl.float32, bitcast=True)
        rounded = (tl.abs(scaled) + shift) - shift
        scaled = (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return scaled.to(tl.float8e4nv)


@triton.jit
def block_scales(largest):
    """(448 / largest, largest / 448) of the largest values of blocks, rounded as IEEE division rounds."""
    largest = tl.maximum(largest, _SMALLEST_AMAX)
    return tl.div_rn(_LARGEST, largest), tl.div_rn(largest, _LARGEST)


@triton.jit
def store_tile(
    y,  # (R, 128) fp32, zero outside of the matrix
    row,  # (R,) int64
    first_column,
    rows,
    size,
    rows_padded,
    data_ptr,  # (rows, size)
    scale_ptr,  # (rows, ⌈size/128⌉), strides (1, rows)
    data_t_ptr,  # (size, rows_padded)
    scale_t_ptr,  # (size, rows_padded/128), strides (1, size)
    inverse_scale,  # of a delayed scale
    BLOCKS: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Quantizes a tile and stores it in one layout or both. Rows go by program_id(0), R at a time; with BLOCKS and
    TRANSPOSE, R must be 128.
    """
    column = first_column + tl.arange(0, 128)
    in_rows = row < rows
    in_columns = column < size
    at = row[:, None] * size + column[None, :]
    inside = in_rows[:, None] & in_columns[None, :]
    at_t = column[None, :].to(tl.int64) * rows_padded + row[:, None]
    inside_t = in_columns[None, :] & (row < rows_padded)[:, None]
    if BLOCKS:
        factor, scale = block_scales(tl.max(tl.abs(y), 1))
        tl.store(data_ptr + at, to_e4m3(y * factor[:, None], EMULATE), mask=inside)
        group = (first_column // 128).to(tl.int64)
        tl.store(scale_ptr + group * rows + row, scale, mask=in_rows)
        if TRANSPOSE:
            factor_t, scale_t = block_scales(tl.max(tl.abs(y), 0))
            tl.store(data_t_ptr + at_t, to_e4m3(y * factor_t[None, :], EMULATE), mask=inside_t)
            block = tl.program_id(0).to(tl.int64)
            tl.store(scale_t_ptr + block * size + column, scale_t, mask=in_columns)
    else:
        data = to_e4m3(y * inverse_scale, EMULATE)
        tl.store(data_ptr + at, data, mask=inside)
        if TRANSPOSE:
            tl.store(data_t_ptr + at_t, data, mask=inside_t)


@triton.jit
def finish_tile(
    y, row, first_column, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr,
    given_ptr,  # the delayed scale
    largest_ptr,  # (programs,) fp32: the largest value of each tile, with a delayed scale
    BLOCKS: tl.constexpr, TRANSPOSE: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """All that is left to a kernel whose program has one tile: `store_tile`, with a delayed scale its largest value."""
    inverse_scale = 1.0
    if not BLOCKS:
        inverse_scale = tl.div_rn(1.0, tl.load(given_ptr))
        program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(largest_ptr + program, tl.max(tl.max(tl.abs(y), 1), 0))
    store_tile(
        y, row, first_column, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr, inverse_scale,
        BLOCKS, TRANSPOSE, EMULATE,
    )  # fmt: skip


@triton.jit
def _kernel(
    x_ptr,  # (rows, size)
    data_ptr,
    scale_ptr,
    data_t_ptr,
    scale_t_ptr,
    given_ptr,  # the delayed scale
    largest_ptr,  # (programs,) fp32: the largest value of each tile, with a delayed scale
    x_row,
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
    column = first_column + tl.arange(0, 128)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    y = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    finish_tile(
        y, row, first_column, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr, given_ptr,
        largest_ptr, BLOCKS, TRANSPOSE, EMULATE,
    )  # fmt: skip


def tile_rows(blocks: bool, transpose: bool) -> int:
    """Tokens of a tile: a block of the transpose where there is one, else what keeps enough loads in flight."""
    return fp8.BLOCK if blocks and transpose else 32


def launches(rows: int) -> tuple[Launch, ...]:
    """How a kernel with a tile of `rows` tokens may be launched; first 32 elements a thread, four 16-byte loads."""
    usual = max(1, rows * COLUMNS // 1024)
    return tuple({"num_warps": count} for count in dict.fromkeys((usual, max(1, usual // 2), min(32, 2 * usual))))


def kind(name: str, blocks: bool, transpose: bool) -> str:
    """The name of a kernel that quantizes, in one of its kinds: "glu_fp8 blocks, both layouts"."""
    return f"{name} {'blocks' if blocks else 'delayed'}, {'both layouts' if transpose else 'one layout'}"


def forward(x: Tensor, scale: Tensor | None, transpose: bool) -> Parts:
    """As `quantize_ref.forward`."""
    return by_tiles("quantize", _kernel, (x,), scale, transpose)


def by_tiles(name: str, kernel: Any, inputs: tuple[Tensor, ...], scale: Tensor | None, transpose: bool) -> Parts:
    """Launches a kernel with a program a tile over `inputs`, each (T, d): `kernel` takes them, what all such kernels
    take, the inputs' row strides and the sizes, as `_kernel` does.
    """
    inputs = tuple(dense(x) for x in inputs)
    x = inputs[0]
    parts = fp8.empty(x, scale is None, transpose)
    tokens, features = x.shape
    if not x.numel():
        return *parts[:4], torch.zeros_like(parts[4])
    rows = tile_rows(scale is None, transpose)
    grid = (triton.cdiv(fp8.padded(tokens) if transpose else tokens, rows), triton.cdiv(features, COLUMNS))
    largest = x.new_empty(grid[0] * grid[1] if scale is not None else 0, dtype=torch.float32)
    with on(x):
        kernel[grid](
            *inputs, *parts[:4], scale, largest, *(x.stride(0) for x in inputs), tokens, features, fp8.padded(tokens),
            BLOCKS=scale is None, TRANSPOSE=transpose, EMULATE=not x.is_cuda, BLOCK_R=rows,
            **chosen(kind(name, scale is None, transpose), x, features, launches(rows)), **LAUNCH,
        )  # fmt: skip
    return fp8.with_amax(parts, largest, scale)


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead, in bf16."""
    return [tile_case("quantize", _kernel, {"x_ptr": "*bf16", "x_row": "i32*16"}, *which) for which in KINDS]


KINDS = [(blocks, transpose) for blocks in (True, False) for transpose in (True, False)]
"""(by blocks or delayed, both layouts or one)."""


def tile_case(name: str, kernel: object, inputs: dict[str, str], blocks: bool, transpose: bool) -> Case:
    """The configuration of a kernel that quantizes tile by tile and takes `inputs` besides what all of them take."""
    rows = tile_rows(blocks, transpose)
    arguments = inputs | {
        "data_ptr": "*fp8e4nv",
        "scale_ptr": "*fp32",
        "data_t_ptr": "*fp8e4nv",
        "scale_t_ptr": "*fp32",
        "given_ptr": "*fp32",
        "largest_ptr": "*fp32",
        "rows": "i32",
        "size": "i32*16",
        "rows_padded": "i32*16",
    }
    constants = {"BLOCKS": blocks, "TRANSPOSE": transpose, "EMULATE": False, "BLOCK_R": rows}
    return Case(kind(name, blocks, transpose), kernel, arguments, constants, num_warps=launches(rows)[0]["num_warps"])
