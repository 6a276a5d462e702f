"""SwiGLU in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in the dtype of gate, computed in fp32."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return (torch.nn.functional.silu(wide) * up).to(gate.dtype)


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """dgate and dup: with s = sigmoid(g), dgate = grad·up·s·(1 + g·(1 − s)) and dup = grad·g·s."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    sigmoid = torch.sigmoid(wide)
    silu = wide * sigmoid
    dgate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return dgate.to(gate.dtype), (grad * silu).to(up.dtype)
