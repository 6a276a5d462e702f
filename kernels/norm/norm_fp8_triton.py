# mypy: disable-error-code="no-untyped-def"
"""RMSNorm that writes FP8, in Triton.

One layout needs a row at a time, so a program holds one and reads it once. With the transpose a program takes 128
tokens (32 with a delayed scale), more than it can hold: it goes over their features twice, the second time backwards,
so that what it read last is still in the cache.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Parts
from mify.kernels.quantize.quantize_triton import (
    COLUMNS,
    KINDS,
    block_scales,
    kind,
    store_tile,
    tile_case,
    tile_rows,
    to_e4m3,
)

from .norm_triton import normed_row, row_launches

# 16 warps spill 16 to 24 bytes a thread, 32 spill 152. Few are enough: a tile of 32 KiB is in flight at a time, and one
# program a multiprocessor keeps what is read twice near the size of the cache.
TILE_LAUNCHES: tuple[Launch, ...] = ({"num_warps": 8}, {"num_warps": 4}, {"num_warps": 16})


@triton.jit
def _row_kernel(
    x_ptr,  # (rows, size)
    residual_ptr,  # (rows, size)
    total_ptr,  # (rows, size), dense
    weight_ptr,  # (size,)
    inverse_ptr,  # (rows,) fp32
    data_ptr,  # (rows, size)
    scale_ptr,  # (rows, ⌈size/128⌉), strides (1, rows)
    given_ptr,  # the delayed scale
    largest_ptr,  # (rows,) fp32: the largest value of each row, with a delayed scale
    x_row,
    residual_row,
    rows,
    size,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCKS: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    y, inverse = normed_row(
        x_ptr, residual_ptr, total_ptr, weight_ptr, row, x_row, residual_row, size, eps, columns, inside, RESIDUAL
    )
    tl.store(inverse_ptr + row, inverse)
    y = y.to(tl.float32)
    if BLOCKS:
        groups = tl.reshape(y, (BLOCK // 128, 128))
        factor, scale = block_scales(tl.max(tl.abs(groups), 1))
        data = tl.reshape(to_e4m3(groups * factor[:, None], EMULATE), (BLOCK,))
        group = tl.arange(0, BLOCK // 128).to(tl.int64)
        tl.store(scale_ptr + group * rows + row, scale, mask=group * 128 < size)
    else:
        data = to_e4m3(y * tl.div_rn(1.0, tl.load(given_ptr)), EMULATE)
        tl.store(largest_ptr + row, tl.max(tl.abs(y), 0))
    tl.store(data_ptr + row * size + columns, data, mask=inside)


@triton.jit
def _tile_kernel(
    x_ptr,  # (rows, size)
    residual_ptr,  # (rows, size)
    total_ptr,  # (rows, size), dense
    weight_ptr,  # (size,)
    inverse_ptr,  # (rows,) fp32
    data_ptr,
    scale_ptr,
    data_t_ptr,
    scale_t_ptr,
    given_ptr,  # the delayed scale
    largest_ptr,  # (programs,) fp32: the largest value of each program, with a delayed scale
    x_row,
    residual_row,
    rows,
    size,
    rows_padded,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCKS: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = row < rows
    squares = tl.zeros((BLOCK_R, 128), tl.float32)
    for start in range(0, size, 128):
        column = start + tl.arange(0, 128)
        inside = there[:, None] & (column < size)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=inside, other=0.0)
        if RESIDUAL:
            residual = tl.load(residual_ptr + row[:, None] * residual_row + column[None, :], mask=inside, other=0.0)
            x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
            tl.store(total_ptr + row[:, None] * size + column[None, :], x, mask=inside)
        squares += x.to(tl.float32) * x.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(squares, 1) / size + eps)
    tl.store(inverse_ptr + row, inverse, mask=there)
    inverse_scale = 1.0
    if not BLOCKS:
        inverse_scale = tl.div_rn(1.0, tl.load(given_ptr))
    largest = tl.zeros((BLOCK_R,), tl.float32)
    if RESIDUAL:
        # What other threads of this program stored is read below.
        tl.debug_barrier()
    steps = tl.cdiv(size, 128)
    for step in range(0, steps):
        start = (steps - 1 - step) * 128
        column = start + tl.arange(0, 128)
        inside = there[:, None] & (column < size)[None, :]
        if RESIDUAL:
            x = tl.load(total_ptr + row[:, None] * size + column[None, :], mask=inside, other=0.0)
        else:
            x = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=inside, other=0.0)
        weight = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(tl.float32)
        y = (x.to(tl.float32) * inverse[:, None] * weight[None, :]).to(x.dtype).to(tl.float32)
        y = tl.where(inside, y, 0.0)  # not −0, nor NaN of an infinite weight: the padding is read by the products
        if not BLOCKS:
            largest = tl.maximum(largest, tl.max(tl.abs(y), 1))
        store_tile(
            y, row, start, rows, size, rows_padded, data_ptr, scale_ptr, data_t_ptr, scale_t_ptr, inverse_scale,
            BLOCKS, TRANSPOSE, EMULATE,
        )  # fmt: skip
    if not BLOCKS:
        tl.store(largest_ptr + tl.program_id(0), tl.max(largest, 0))


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, scale: Tensor | None, transpose: bool
) -> tuple[Parts, Tensor | None, Tensor]:
    """As `norm_fp8_ref.forward`."""
    x, weight = dense(x), weight.contiguous()
    parts = fp8.empty(x, scale is None, transpose)
    tokens, size = x.shape
    inverse = x.new_empty((tokens, 1), dtype=torch.float32)
    total = None
    if residual is not None:
        residual = dense(residual)
        total = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not tokens:
        return (*parts[:4], torch.zeros_like(parts[4])), total, inverse
    rows = tile_rows(scale is None, transpose) if transpose else 1
    programs = fp8.padded(tokens) // rows if transpose else tokens
    largest = x.new_empty(programs if scale is not None else 0, dtype=torch.float32)
    strides = x.stride(0), 0 if residual is None else residual.stride(0)
    candidates = TILE_LAUNCHES if transpose else row_launches(_row_block(size))
    launch = chosen(kind("norm_fp8", scale is None, transpose), x, size, candidates)
    common = {"RESIDUAL": residual is not None, "BLOCKS": scale is None, "EMULATE": not x.is_cuda, **launch, **LAUNCH}
    with on(x):
        if transpose:
            _tile_kernel[(programs,)](
                x, residual, total, weight, inverse, *parts[:4], scale, largest, *strides, tokens, size,
                fp8.padded(tokens), eps, TRANSPOSE=True, BLOCK_R=rows, **common,
            )  # fmt: skip
        else:
            _row_kernel[(programs,)](
                x, residual, total, weight, inverse, *parts[:2], scale, largest, *strides, tokens, size, eps,
                BLOCK=_row_block(size), **common,
            )  # fmt: skip
    return fp8.with_amax(parts, largest, scale), total, inverse


def _row_block(size: int) -> int:
    return max(COLUMNS, triton.next_power_of_2(size))


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: the width of mify-2.5b, in bf16."""
    inputs = {
        "x_ptr": "*bf16",
        "residual_ptr": "*bf16",
        "total_ptr": "*bf16",
        "weight_ptr": "*bf16",
        "inverse_ptr": "*fp32",
        "x_row": "i32*16",
        "residual_row": "i32*16",
        "eps": "fp32",
    }
    found = []
    for residual in (False, True):
        title = f"norm_fp8{' with residual' if residual else ''}"
        for blocks, transpose in KINDS:
            case = tile_case(title, _tile_kernel if transpose else _row_kernel, inputs, blocks, transpose)
            constants, launch = {**case.constants, "RESIDUAL": residual}, TILE_LAUNCHES[0]
            if not transpose:
                block = _row_block(2560)
                constants = {"RESIDUAL": residual, "BLOCKS": blocks, "EMULATE": False, "BLOCK": block}
                launch = row_launches(block)[0]
            found.append(dataclasses.replace(case, constants=constants, num_warps=launch["num_warps"]))
    return found
