"""FP8 tensors as matrix products take them: E4M3 data in two layouts, with the scales that bring it back.

A matrix x (T, d) is kept as data · scale ≈ x. A product that contracts over features (forward, and dgrad with respect
to its weight) reads `data` (T, d); the weight gradient contracts over tokens and reads `data_t` (d, T′), whose tokens
are padded with zeros to T′, the next multiple of 128. Two ways to scale:

blocks   a scale for every 128 features of a token, and in the transpose one for every 128 tokens of a feature, so a
         scale never varies along what is summed: s = max|x| / 448 over the block, data = x · (448 / max|x|), fp32.
delayed  one scale for the whole tensor, known beforehand from the largest values of earlier steps; values beyond
         448 · scale saturate. What comes out besides is this tensor's own largest value, for the steps to come.

A scale for every row would serve the forward product alone. NaN stays NaN; a block that holds infinity becomes NaN.
Scales lie as torch's scaled product and DeepGEMM want them: along tokens (in the transpose, along features) next to
each other, `scale.stride() == (1, T)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mify.kernels import checks, dispatch

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest finite value of E4M3."""
BLOCK = 128
SMALLEST_AMAX = 2.0**-100
"""What a block's largest value counts at least: below it 448 / max|x| would leave fp32. A block of zeros stays zero."""


class Fp8(NamedTuple):
    """A quantized matrix (T, d), see above.

    Args:
        data: (T, d) E4M3, contiguous.
        scale: fp32, (T, ⌈d/128⌉) with strides (1, T) for blocks, () for a delayed scale.
        data_t: (d, T′) E4M3, contiguous, zero beyond T; None where it was not asked for.
        scale_t: fp32, (d, T′/128) with strides (1, d) for blocks, () for a delayed scale; None with data_t.
        amax: () fp32, the largest |x|, for a delayed scale; None for blocks.
    """

    data: Tensor
    scale: Tensor
    data_t: Tensor | None
    scale_t: Tensor | None
    amax: Tensor | None

    def wide(self) -> Tensor:
        """data · scale, (T, d) fp32."""
        return _dequantized(self.data, self.scale)

    def wide_t(self) -> Tensor:
        """data_t · scale_t, (d, T′) fp32."""
        if self.data_t is None or self.scale_t is None:
            raise ValueError("data_t is None: it was made with transpose=False")
        return _dequantized(self.data_t, self.scale_t)


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What the ops return: data, scale, data_t, scale_t, amax, with no elements where there is nothing."""


def padded(tokens: int) -> int:
    """The next multiple of 128: T′."""
    return -(-tokens // BLOCK) * BLOCK


def empty(x: Tensor, blocks: bool, transpose: bool) -> Parts:
    """Unwritten parts for x (T, d)."""
    tokens, features = x.shape
    width = padded(tokens)
    nothing = x.new_empty(0, dtype=torch.float32)
    data = x.new_empty((tokens, features), dtype=DTYPE)
    scale = x.new_empty((-(-features // BLOCK), tokens), dtype=torch.float32).t() if blocks else nothing
    data_t = x.new_empty((features, width) if transpose else 0, dtype=DTYPE)
    both = blocks and transpose
    scale_t = x.new_empty((width // BLOCK, features), dtype=torch.float32).t() if both else nothing.clone()
    amax = nothing.clone() if blocks else x.new_empty((), dtype=torch.float32)
    return data, scale, data_t, scale_t, amax


def collect(parts: Parts, scale: Tensor | None, transpose: bool) -> Fp8:
    """The parts of an op as what the public functions return; `scale` is the delayed scale that it was given."""
    data, scales, data_t, scales_t, amax = parts
    if scale is not None:
        return Fp8(data, scale, data_t if transpose else None, scale if transpose else None, amax)
    return Fp8(data, scales, data_t if transpose else None, scales_t if transpose else None, None)


def with_amax(parts: Parts, largest: Tensor, scale: Tensor | None) -> Parts:
    """The parts, with the largest of the tiles' largest values where the scale is a delayed one."""
    return parts if scale is None else (*parts[:4], largest.amax())


def check_scale(scale: Tensor | None, name: str, x: Tensor) -> None:
    """Raises unless `scale` is None or a positive fp32 scalar tensor beside x. On a GPU its value is not read."""
    if scale is None:
        return
    checks.tensor("scale", scale, dims=0)
    checks.integer("scale", scale, torch.float32)
    checks.same("scale", scale, name, x, dtype=False)
    if scale.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(scale > 0):
        raise ValueError(f"scale is {scale.item()}; it must be positive")


def triton_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why a Triton kernel that writes FP8 cannot take these tensors, or ""."""
    if device.kind == "cuda" and device.capability < (8, 9):
        have = ".".join(map(str, device.capability))
        return f"float8_e4m3fn needs compute capability 8.9, this GPU has {have}"
    return dispatch.triton_refuses(device, dtype, shape)


def _dequantized(data: Tensor, scale: Tensor) -> Tensor:
    wide = data.to(torch.float32)
    return wide * (scale if scale.dim() == 0 else scale.repeat_interleave(BLOCK, 1)[:, : data.shape[1]])
