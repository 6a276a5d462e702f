# mypy: disable-error-code="no-untyped-def"
"""RMSNorm in Triton, alone and on top of a residual: one read and one write of every tensor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on, processors


@triton.jit
def normed_row(
    x_ptr, residual_ptr, total_ptr, weight_ptr, row, x_row, residual_row, size, eps, columns, inside,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row's norm, in the dtype of x, and its 1/rms; the sum with the residual is stored on the way."""
    x = tl.load(x_ptr + row * x_row + columns, mask=inside, other=0.0)
    if RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_row + columns, mask=inside, other=0.0)
        # Rounded as torch rounds the sum, so the norm sees what the stream keeps.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + row * size + columns, x, mask=inside)
    wide = x.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return (wide * inverse * weight).to(x.dtype), inverse


@triton.jit
def _forward_kernel(
    x_ptr,  # (rows, size)
    residual_ptr,  # (rows, size)
    total_ptr,  # (rows, size), dense
    weight_ptr,  # (size,)
    y_ptr,  # (rows, size), dense
    inverse_ptr,  # (rows,) fp32
    x_row,
    residual_row,
    size,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    y, inverse = normed_row(
        x_ptr, residual_ptr, total_ptr, weight_ptr, row, x_row, residual_row, size, eps, columns, inside, RESIDUAL
    )
    tl.store(y_ptr + row * size + columns, y, mask=inside)
    tl.store(inverse_ptr + row, inverse)


@triton.jit
def _backward_kernel(
    grad_ptr,  # (rows, size)
    grad_total_ptr,  # (rows, size)
    x_ptr,  # (rows, size): what was normed
    weight_ptr,  # (size,)
    inverse_ptr,  # (rows,) fp32
    dx_ptr,  # (rows, size), dense
    partial_ptr,  # (programs, size) fp32
    grad_row,
    grad_total_row,
    x_row,
    rows,
    size,
    TOTAL: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Every program takes a fixed run of rows and writes one partial sum, so the weight's gradient has the same bits
    # every time.
    program = tl.program_id(0).to(tl.int64)  # and so are the rows: their offsets pass 2³¹
    count = tl.cdiv(rows, tl.num_programs(0))
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    for row in tl.range(program * count, tl.minimum(program * count + count, rows), num_stages=STAGES):
        grad = tl.load(grad_ptr + row * grad_row + columns, mask=inside, other=0.0)
        x = tl.load(x_ptr + row * x_row + columns, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row)
        normal = x * inverse
        wide = grad.to(tl.float32)
        dweight += wide * normal
        scaled = wide * weight
        dx = inverse * (scaled - normal * (tl.sum(scaled * normal, 0) / size))
        if TOTAL:
            besides = tl.load(grad_total_ptr + row * grad_total_row + columns, mask=inside, other=0.0)
            dx += besides.to(tl.float32)
        tl.store(dx_ptr + row * size + columns, dx.to(grad.dtype), mask=inside)
    tl.store(partial_ptr + program * size + columns, dweight, mask=inside)


def warps(block: int) -> int:
    # 16 bytes a thread and load, in a few loads: enough in flight for memory, few enough registers for four blocks.
    return min(16, max(1, block // 512))


def row_launches(block: int) -> tuple[Launch, ...]:
    """How a kernel with a program a row may be launched, for rows padded to `block`."""
    usual = warps(block)
    return tuple({"num_warps": count} for count in dict.fromkeys((usual, min(32, 2 * usual), max(1, usual // 2))))


def backward_launches(block: int) -> tuple[Launch, ...]:
    """Warps of a program, programs a multiprocessor, over which the rows are dealt out, and rows that are on their way.

    By their registers 16 warps fit beside each other. With two stages a row is copied while the one before it is
    summed, so memory never waits for a reduction.
    """
    usual = warps(block)
    most = max(1, 16 // usual)
    sets = (
        (usual, most, 2),
        (usual, 2 * most, 1),
        (usual, most, 3),
        (usual, 2 * most, 2),
        (min(32, 2 * usual), max(1, most // 2), 2),
        (max(1, usual // 2), 2 * most, 2),
    )
    return tuple(
        {"num_warps": count, "programs": programs, "STAGES": stages} for count, programs, stages in dict.fromkeys(sets)
    )


def forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `norm_ref.forward`."""
    x, weight = dense(x), weight.contiguous()
    rows, size = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    inverse = x.new_empty((rows, 1), dtype=torch.float32)
    total = None
    if residual is not None:
        residual = dense(residual)
        total = torch.empty_like(y)
    if rows:
        block = triton.next_power_of_2(size)
        with on(x):
            _forward_kernel[(rows,)](
                x, residual, total, weight, y, inverse, x.stride(0), 0 if residual is None else residual.stride(0),
                size, eps, RESIDUAL=residual is not None, BLOCK=block,
                **chosen("norm forward", x, size, row_launches(block)), **LAUNCH,
            )  # fmt: skip
    return y, total, inverse


def backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """As `norm_ref.backward`."""
    grad, x, dense_weight = dense(grad), dense(x), weight.contiguous()
    rows, size = x.shape
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not rows:
        return dx, torch.zeros_like(weight)
    if grad_total is not None:
        grad_total = dense(grad_total)
    block = triton.next_power_of_2(size)
    launch = chosen("norm backward", x, size, backward_launches(block))
    programs = min(rows, launch["programs"] * processors(x))
    partial = x.new_empty((programs, size), dtype=torch.float32)
    with on(x):
        _backward_kernel[(programs,)](
            grad, grad_total, x, dense_weight, inverse, dx, partial,
            grad.stride(0), 0 if grad_total is None else grad_total.stride(0), x.stride(0), rows, size,
            TOTAL=grad_total is not None, STAGES=launch["STAGES"], BLOCK=block, num_warps=launch["num_warps"], **LAUNCH,
        )  # fmt: skip
    return dx, partial.sum(0).to(weight.dtype)


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: the widths of the presets, in bf16."""
    found = []
    for size in (768, 1024, 2560):
        block = triton.next_power_of_2(size)
        backward = backward_launches(block)[0]
        for extra in (False, True):
            found.append(
                Case(
                    f"norm forward {size}{' with residual' if extra else ''}",
                    _forward_kernel,
                    {
                        "x_ptr": "*bf16",
                        "residual_ptr": "*bf16",
                        "total_ptr": "*bf16",
                        "weight_ptr": "*bf16",
                        "y_ptr": "*bf16",
                        "inverse_ptr": "*fp32",
                        "x_row": "i32*16",
                        "residual_row": "i32*16",
                        "size": "i32*16",
                        "eps": "fp32",
                    },
                    {"RESIDUAL": extra, "BLOCK": block},
                    num_warps=warps(block),
                )
            )
            found.append(
                Case(
                    f"norm backward {size}{' with residual' if extra else ''}",
                    _backward_kernel,
                    {
                        "grad_ptr": "*bf16",
                        "grad_total_ptr": "*bf16",
                        "x_ptr": "*bf16",
                        "weight_ptr": "*bf16",
                        "inverse_ptr": "*fp32",
                        "dx_ptr": "*bf16",
                        "partial_ptr": "*fp32",
                        "grad_row": "i32*16",
                        "grad_total_row": "i32*16",
                        "x_row": "i32*16",
                        "rows": "i32",
                        "size": "i32*16",
                    },
                    {"TOTAL": extra, "STAGES": backward["STAGES"], "BLOCK": block},
                    num_warps=backward["num_warps"],
                )
            )
    return found
