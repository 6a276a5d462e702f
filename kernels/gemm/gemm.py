"""FP8 matrix products, a · bᵀ with a (M, K) and b (N, K) in E4M3 and the scales of `mify.kernels.quantize.fp8`.

Both operands are contiguous along what is summed (K): the one layout that Hopper's FP8 tensor cores take. The three
products of a linear layer y = x Wᵀ are then

    forward   y  (T, N) = x.data (T, K)   · w.data (N, K)       sums over K
    dgrad     dx (T, K) = dy.data (T, N)  · w.data_t (K, N)     sums over N
    wgrad     dW (N, K) = dy.data_t (N, T′) · x.data_t (K, T′)  sums over T′, tokens padded with zeros

Scales: one for a tensor, out = (Σ a b) · (s_a s_b); or 1×128 blocks along K, out = Σ_blocks (Σ_in block a b) · s_a s_b.
Products of E4M3 values are exact in fp32; sums are fp32 and in the order of the backend; the result is rounded once.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mify.kernels import checks, dispatch
from mify.kernels.quantize.fp8 import BLOCK, DTYPE

from . import gemm_ref, gemm_torch

ALIGN = 16
"""What N and K must be multiples of: cuBLAS takes rows of 16 bytes."""

dispatch.register("gemm", dispatch.Backend("torch", gemm_torch.refuses), dispatch.Backend("ref", lambda *_: ""))


def _backend(impl: str, a: Tensor, b: Tensor, scale: Tensor) -> ModuleType:
    shape = {"m": a.shape[0], "n": b.shape[0], "k": a.shape[1], "blocks": int(scale.dim() == 2)}
    return gemm_torch if dispatch.resolve("gemm", impl, a, shape) == "torch" else gemm_ref


@torch.library.custom_op("mify::fp8_matmul", mutates_args=())
def _op(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return _backend(impl, a, b, scale_a).forward(a, scale_a, b, scale_b, dtype)


@_op.register_fake
def _(a, scale_a, b, scale_b, dtype, impl):  # type: ignore[no-untyped-def]
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def fp8_matmul(
    a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, *, dtype: torch.dtype = torch.bfloat16, impl: str = "auto"
) -> Tensor:
    """a · bᵀ, (M, N) in `dtype`; not differentiable by itself.

    Args:
        a: (M, K) E4M3. b: (N, K) E4M3, the same device. Rows that are not dense or not at multiples of 16 are copied.
        scale_a, scale_b: both () fp32, or (M, ⌈K/128⌉) and (N, ⌈K/128⌉) fp32.
        dtype: bfloat16 or float32.
        impl: see `mify.kernels.dispatch`; the op is "gemm".

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, x in (("a", a), ("b", b)):
        checks.tensor(name, x, dims=2)
        checks.integer(name, x, DTYPE)
    checks.same("b", b, "a", a)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b has shape {tuple(b.shape)}; it must have the {a.shape[1]} columns of a, which are summed")
    for name, scale, x in (("scale_a", scale_a, a), ("scale_b", scale_b, b)):
        checks.integer(name, checks.tensor(name, scale), torch.float32)
        checks.same(name, scale, "a", a, dtype=False)
        if scale.dim() != 0 and tuple(scale.shape) != (x.shape[0], -(-x.shape[1] // BLOCK)):
            raise ValueError(
                f"{name} has shape {tuple(scale.shape)}; it must be () or {(x.shape[0], -(-x.shape[1] // BLOCK))}"
            )
    if scale_a.dim() != scale_b.dim():
        raise ValueError("scale_a and scale_b must both be scalars or both be blocks")
    if dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"dtype is {dtype}; it must be torch.bfloat16 or torch.float32")
    result: Tensor = _op(a, scale_a, b, scale_b, dtype, impl)
    return result
