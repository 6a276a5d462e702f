"""What the launches of the row-wise Triton kernels share: the device, rows that can be addressed, sizes of launches.

A kernel has a few candidates of how it may be launched (warps, rows of a block, …), the first of them chosen without a
GPU: the one used, unless kernels/measured.json holds the candidates' times for this GPU and size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import dispatch, measured

Launch = Mapping[str, int]


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


def chosen(kernel: str, x: Tensor, size: int, candidates: Sequence[Launch]) -> Launch:
    """The candidate for the rows of x, `size` elements each: the fastest measured on this GPU, else the first."""
    if not x.is_cuda:
        return candidates[0]
    device, dtype = dispatch.describe(x.device).name, str(x.dtype).removeprefix("torch.")
    names = measured.fastest_first(measured.load(), kernel, device, dtype, {"size": size}, LIKE)
    by_name = {label(candidate): candidate for candidate in candidates}
    return next((by_name[name] for name in names if name in by_name), candidates[0])


LIKE = measured.Like(equal=("size",))
"""Another width is another kernel: its times say nothing."""


def label(candidate: Launch) -> str:
    """How a candidate is named in the table: "num_warps=8, programs=4"."""
    return ", ".join(f"{key}={value}" for key, value in candidate.items())
