# mypy: disable-error-code="no-untyped-def"
"""SwiGLU in Triton: one read and one write of every tensor, in tiles of a few rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on

LAUNCHES: tuple[Launch, ...] = (
    {"BLOCK_R": 4, "BLOCK_C": 1024, "num_warps": 4},
    {"BLOCK_R": 2, "BLOCK_C": 1024, "num_warps": 4},
    {"BLOCK_R": 8, "BLOCK_C": 1024, "num_warps": 8},
    {"BLOCK_R": 1, "BLOCK_C": 2048, "num_warps": 4},
    {"BLOCK_R": 1, "BLOCK_C": 1024, "num_warps": 2},
)


@triton.jit
def swiglu(gate, up):
    """silu(gate) · up in the dtype of gate, computed in fp32."""
    wide = gate.to(tl.float32)
    return (wide * tl.sigmoid(wide) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _forward_kernel(
    gate_ptr,  # (rows, size)
    up_ptr,  # (rows, size)
    y_ptr,  # (rows, size), dense
    gate_row,
    up_row,
    rows,
    size,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = (row < rows) & (column < size)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_row + column, mask=inside, other=0.0)
    tl.store(y_ptr + row * size + column, swiglu(gate, up), mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr,  # (rows, size)
    gate_ptr,  # (rows, size)
    up_ptr,  # (rows, size)
    dgate_ptr,  # (rows, size), dense
    dup_ptr,  # (rows, size), dense
    grad_row,
    gate_row,
    up_row,
    rows,
    size,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = (row < rows) & (column < size)
    grad = tl.load(grad_ptr + row * grad_row + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    sigmoid = tl.sigmoid(wide)
    silu = wide * sigmoid
    dgate = grad * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(dgate_ptr + row * size + column, dgate.to(gate.dtype), mask=inside)
    tl.store(dup_ptr + row * size + column, (grad * silu).to(gate.dtype), mask=inside)


def _grid(x: Tensor, launch: Launch) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], launch["BLOCK_R"]), triton.cdiv(x.shape[1], launch["BLOCK_C"])


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As `glu_ref.forward`."""
    gate, up = dense(gate), dense(up)
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if gate.numel():
        launch = chosen("glu forward", gate, gate.shape[1], LAUNCHES)
        with on(gate):
            _forward_kernel[_grid(gate, launch)](
                gate, up, y, gate.stride(0), up.stride(0), *gate.shape, **launch, **LAUNCH
            )
    return y


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """As `glu_ref.backward`."""
    grad, gate, up = dense(grad), dense(gate), dense(up)
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    dup = torch.empty_like(dgate)
    if gate.numel():
        launch = chosen("glu backward", gate, gate.shape[1], LAUNCHES)
        with on(gate):
            _backward_kernel[_grid(gate, launch)](
                grad, gate, up, dgate, dup, grad.stride(0), gate.stride(0), up.stride(0), *gate.shape,
                **launch, **LAUNCH,
            )  # fmt: skip
    return dgate, dup


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead."""
    blocks = {name: LAUNCHES[0][name] for name in ("BLOCK_R", "BLOCK_C")}
    shape = {"rows": "i32", "size": "i32*16"}
    rows = {"gate_row": "i32*16", "up_row": "i32*16"}
    return [
        Case(
            "glu forward",
            _forward_kernel,
            {"gate_ptr": "*bf16", "up_ptr": "*bf16", "y_ptr": "*bf16", **rows, **shape},
            blocks,
        ),
        Case(
            "glu backward",
            _backward_kernel,
            {
                "grad_ptr": "*bf16",
                "gate_ptr": "*bf16",
                "up_ptr": "*bf16",
                "dgate_ptr": "*bf16",
                "dup_ptr": "*bf16",
                "grad_row": "i32*16",
                **rows,
                **shape,
            },
            blocks,
        ),
    ]
