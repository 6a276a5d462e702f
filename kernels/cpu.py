"""What the backends in C++ for CPUs (`X_cpu.py`) share: when they can run, and tensors as raw pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why the C++ kernels cannot take these tensors, or ""."""
    if device.kind != "cpu":
        return "it runs on CPUs"
    if dtype != torch.float32:
        return f"it takes float32, not {dtype}"
    return ""


def dense(*tensors: Tensor) -> list[Tensor]:
    """The tensors, those copied whose last dimension is not dense."""
    return [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]


def rows(x: Tensor | None) -> tuple[int, int]:
    """(pointer, row stride) of a matrix with dense rows; (0, 0) for None."""
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))


def heads(x: Tensor) -> tuple[int, int, int]:
    """(pointer, token stride, head stride) of a (T, H, D) tensor with a dense last dimension."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def threads() -> int:
    """As many as torch would use."""
    return torch.get_num_threads()
