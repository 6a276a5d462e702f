"""Checks at the door of the public functions: an error names the argument, what it is and what would be right."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(name: str, x: object, *, dims: int | None = None) -> Tensor:
    """`x` as a tensor of `dims` dimensions; otherwise TypeError or ValueError."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor")
    if dims is not None and x.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {dims} dimensions")
    # Dynamo forbids looking at the layout in the backward pass of an autograd.Function.
    if not torch.compiler.is_compiling() and x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}; it must be a dense (strided) tensor")
    return x


def floating(name: str, x: Tensor) -> None:
    """Raises TypeError unless `x` is float16, bfloat16, float32 or float64."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; it must be one of {', '.join(str(d) for d in FLOATS)}")


def integer(name: str, x: Tensor, *dtypes: torch.dtype) -> None:
    """Raises TypeError unless the dtype of `x` is one of `dtypes`."""
    if x.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {x.dtype}; it must be {' or '.join(str(d) for d in dtypes)}")


def whole_number(name: str, x: object) -> None:
    """Raises TypeError unless `x` is an int (True and False are none here)."""
    if not isinstance(x, (int, torch.SymInt)) or isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; it must be an int")


def same(name: str, x: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Raises ValueError unless `x` and `other` lie on one device and, if `dtype`, share the dtype."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} is on {other.device}; put both on one device")
    if dtype and x.dtype != other.dtype:
        raise ValueError(f"{name} has dtype {x.dtype} but {other_name} has {other.dtype}; give both the same dtype")


def alike(name: str, x: object, other_name: str, other: Tensor) -> None:
    """Raises TypeError or ValueError unless `x` is a tensor of the shape, dtype and device of `other`."""
    given = tensor(name, x, dims=other.dim())
    same(name, given, other_name, other)
    if given.shape != other.shape:
        shapes = tuple(given.shape), tuple(other.shape)
        raise ValueError(f"{name} has shape {shapes[0]}; {other_name} has {shapes[1]}: they must be equal")


def no_overlap(name: str, x: Tensor) -> Tensor:
    """`x`, copied when its elements overlap in memory (an expanded tensor), so that a kernel may index it freely."""
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        return x.contiguous()
    return x


_memory: dict[tuple[int, str, int], tuple[weakref.ref[Tensor], int, Any]] = {}


def remembered(key: str, x: Tensor, make: Callable[[], Any], *, on_host: bool = False) -> Any:
    """`make()`, remembered under `key` with the tensor `x` until `x` is changed in place or gone.

    Inference tensors carry no version, so whether one has changed cannot be known: for them nothing is remembered. What
    lies on a device is remembered for the stream that made it, and not at all while a CUDA graph is captured: there it
    is made by the graph, so that each replay follows what has been written to `x` since.

    Args:
        on_host: what is made are values on the host, which no stream has to be waited for.
    """
    if x.is_inference() or (captures(x) and not on_host):
        return make()
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda and not on_host else 0
    at = (id(x), key, stream)
    known = _memory.get(at)
    if known is not None and known[0]() is x and known[1] == x._version:
        return known[2]
    value = make()
    _memory[at] = (weakref.ref(x, lambda _: _memory.pop(at, None)), x._version, value)
    return value


def captures(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the current stream, for an op on `x`."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def segment_bounds(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> list[int]:
    """The values of `cu_seqlens` on the host, checked: 0 first, never falling, `tokens` last, no segment too long.

    They are remembered with the tensor, so only its first use reads a device: use it once before a CUDA graph is
    captured. A replayed graph checks nothing. Raises ValueError.
    """
    bounds: list[int] = remembered("bounds", cu_seqlens, lambda: _read_bounds(cu_seqlens), on_host=True)
    if bounds[-1] != tokens:
        raise ValueError(f"cu_seqlens ends with {bounds[-1]}; it must end with the number of tokens, {tokens}")
    longest = longest_segment(bounds)
    if longest > max_seqlen:
        raise ValueError(f"cu_seqlens has a segment of {longest} tokens; max_seqlen is {max_seqlen}")
    return bounds


def longest_segment(bounds: list[int]) -> int:
    """Tokens of the longest of the segments with these bounds; 0 without segments."""
    return max((end - start for start, end in itertools.pairwise(bounds)), default=0)


def _read_bounds(cu_seqlens: Tensor) -> list[int]:
    if captures(cu_seqlens):
        raise ValueError(
            "cu_seqlens is new, and its values cannot be read while a CUDA graph is captured; call the function with "
            "this tensor once before"
        )
    bounds: list[int] = cu_seqlens.tolist()
    if not bounds or bounds[0] != 0:
        raise ValueError(f"cu_seqlens begins with {bounds[:1]}; it must begin with 0")
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        if end < start:
            raise ValueError(f"cu_seqlens falls from {start} to {end} at index {index + 1}; it must never fall")
    return bounds


def aligned_rows(x: Tensor) -> Tensor:
    """`x`, copied unless its last dimension is dense and its rows begin at multiples of 16 bytes."""
    good = (x.stride(-1) == 1 or x.shape[-1] == 1) and x.data_ptr() % 16 == 0
    good = good and all(
        stride > 0 and stride * x.element_size() % 16 == 0
        for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)
        if size > 1
    )
    return x if good else x.clone(memory_format=torch.contiguous_format)
