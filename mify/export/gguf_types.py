"""Which ggml type each tensor of a GGUF file gets, and the encoding of rows into it.

The mixtures (Q4_K_M and its kin) follow llama.cpp's own rules for a dense Llama (src/llama-quant.cpp): more bits for
the value and down projections of some layers, Q6_K for the output matrix, and a 32-wide type where a row is no
multiple of 256. Plain and legacy types are encoded by `gguf`; K-quants by ggml itself, out of `xllamacpp`.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mify.errors import MifyError
from mify.export import llama_cpp

CHUNK_BYTES = 64 << 20
"""fp32 bytes encoded at a time: what bounds memory beside the tensor itself."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A file type: llama.cpp's number for `general.file_type`, and the type of a matrix that no rule names."""

    file_type: int
    matrix: str


RECIPES: dict[str, Recipe] = {
    "f32": Recipe(0, "F32"),
    "f16": Recipe(1, "F16"),
    "bf16": Recipe(32, "BF16"),
    "q8_0": Recipe(7, "Q8_0"),
    "q6_k": Recipe(18, "Q6_K"),
    "q5_k_m": Recipe(17, "Q5_K"),
    "q5_k_s": Recipe(16, "Q5_K"),
    "q4_k_m": Recipe(15, "Q4_K"),
    "q4_k_s": Recipe(14, "Q4_K"),
    "q3_k_l": Recipe(13, "Q3_K"),
    "q3_k_m": Recipe(12, "Q3_K"),
    "q3_k_s": Recipe(11, "Q3_K"),
    "q2_k": Recipe(10, "Q2_K"),
}

# Where a row is no multiple of 256.
_NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def recipe(dtype: str) -> Recipe:
    """The recipe of a dtype name, in either case; an unknown one raises `MifyError`."""
    known = RECIPES.get(dtype.lower())
    if known is None:
        raise MifyError(f"unknown GGUF dtype {dtype!r}", f"the dtypes are {', '.join(RECIPES)}")
    return known


def tensor_type(
    name: str, shape: tuple[int, ...], dtype: str, *, layer: int, num_layers: int, queries_per_kv: int, tied: bool
) -> str:
    """The ggml type of one tensor.

    Args:
        name: GGUF's name. shape: rows, columns; a vector is a norm and stays F32.
        dtype: a key of `RECIPES`. layer: its layer, -1 outside the layers. queries_per_kv: GQA's group size.
        tied: whether the embedding is the output matrix too.
    """
    if len(shape) == 1:
        return "F32"
    dtype = dtype.lower()
    chosen = recipe(dtype).matrix
    if "_k" in dtype:
        chosen = _mixture(name, dtype, chosen, layer, num_layers, queries_per_kv, tied)
    columns = shape[-1]
    if chosen.endswith("_K") and columns % 256:
        chosen = _NARROW[chosen]
    if chosen.startswith("Q") and columns % 32:
        chosen = "F16"
    return chosen


def _mixture(name: str, dtype: str, default: str, layer: int, num_layers: int, queries_per_kv: int, tied: bool) -> str:
    eighth = num_layers // 8
    more = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K"
    if name.endswith("attn_v.weight"):
        return {
            "q2_k": "Q4_K" if queries_per_kv >= 4 else "Q3_K",
            "q3_k_m": "Q5_K" if layer < 2 else "Q4_K",
            "q3_k_l": "Q5_K",
            "q4_k_s": "Q5_K" if layer < 4 else default,
            "q4_k_m": "Q6_K" if more else default,
            "q5_k_m": "Q6_K" if more else default,
        }.get(dtype, default)
    if name.endswith("ffn_down.weight"):
        return {
            "q2_k": "Q3_K",
            "q3_k_m": "Q5_K" if layer < num_layers // 16 else "Q4_K",
            "q3_k_l": "Q5_K",
            "q4_k_s": "Q5_K" if layer < eighth else default,
            "q4_k_m": "Q6_K" if more else default,
            "q5_k_m": "Q6_K" if more else default,
        }.get(dtype, default)
    if name.endswith("attn_output.weight"):
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(dtype, default)
    return default


def encoded_bytes(shape: tuple[int, ...], kind: str) -> int:
    """How many bytes a tensor takes in ggml type `kind`.

    Raises:
        ValueError: its rows are no whole number of the type's blocks.
    """
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if math.prod(shape[-1:]) % block:
        raise ValueError(f"rows of {math.prod(shape[-1:])} values are no whole blocks of {block} as {kind} has")
    return math.prod(shape) // block * size


def encode(tensor: Tensor, kind: str, name: str) -> Iterator[Any]:
    """The bytes of `tensor` in ggml type `kind`, some rows at a time.

    Raises:
        MifyError: a value that F16 cannot hold, or a K-quant where ggml is not installed.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield _encode_rows(rows[start : start + step].contiguous(), kind, name)


def _encode_rows(rows: Tensor, kind: str, name: str) -> Any:
    if kind in ("F32", "F16", "BF16"):
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        cast = rows.to(dtype)
        if kind == "F16" and not torch.isfinite(cast).all() and torch.isfinite(rows).all():
            raise MifyError(f"{name} has values beyond 65504, which F16 cannot hold", "export as bf16 or f32")
        return cast.view(-1).view(torch.uint8).numpy().data
    import gguf

    values = rows.float()
    if not torch.isfinite(values).all():
        raise MifyError(f"{name} has values that are not finite", "quantize a model whose weights are finite")
    number = gguf.GGMLQuantizationType[kind]
    if llama_cpp.available():
        return _ggml_encode(values.numpy(), int(number), encoded_bytes(tuple(values.shape), kind))
    if kind.endswith("_K"):
        raise MifyError(f"{kind} is encoded by ggml, which is not installed", "pip install 'mify[llama-cpp]'")
    return np.ascontiguousarray(gguf.quantize(values.numpy(), number)).data.cast("B")


@functools.cache
def _ggml_quantize_chunk() -> Any:
    """size_t ggml_quantize_chunk(type, const float *, void *, start, rows, per_row, const float * importance)."""
    import xllamacpp.xllamacpp

    function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return function


def _ggml_encode(values: np.ndarray[Any, np.dtype[np.float32]], number: int, num_bytes: int) -> Any:
    out = np.empty(num_bytes, dtype=np.uint8)
    rows, columns = values.shape
    written = _ggml_quantize_chunk()(number, values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    if written != num_bytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {num_bytes}")
    return out.data
