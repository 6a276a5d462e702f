"""What the launches of the row-wise Triton kernels share: the device they run on, and rows that can be addressed."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on(x: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `x` the current one: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def dense(x: Tensor) -> Tensor:
    """`x`, copied where the elements of a row do not lie next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def processors(x: Tensor) -> int:
    """Multiprocessors of the device of `x`; 2 in Triton's interpreter, so that there is more than one program."""
    return _processors(x.device.index) if x.is_cuda else 2


@functools.lru_cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
