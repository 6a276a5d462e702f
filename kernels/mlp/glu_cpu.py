"""SwiGLU in C++ for CPUs (csrc/fused/rows.hpp), float32."""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import cpu


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As `glu_ref.forward`."""
    from mify._core import kernels

    gate, up = cpu.dense(gate, up)
    y = torch.empty(gate.shape, dtype=gate.dtype)
    kernels.glu_forward(cpu.rows(gate), cpu.rows(up), cpu.rows(y), gate.shape[0], gate.shape[1], cpu.threads())
    return y


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """As `glu_ref.backward`."""
    from mify._core import kernels

    grad, gate, up = cpu.dense(grad, gate, up)
    dgate, dup = torch.empty(gate.shape, dtype=gate.dtype), torch.empty(gate.shape, dtype=gate.dtype)
    kernels.glu_backward(
        cpu.rows(grad),
        cpu.rows(gate),
        cpu.rows(up),
        cpu.rows(dgate),
        cpu.rows(dup),
        gate.shape[0],
        gate.shape[1],
        cpu.threads(),
    )
    return dgate, dup
