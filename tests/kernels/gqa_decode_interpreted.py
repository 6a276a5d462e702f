"""Run by test_gqa_decode.py in a process of its own: the interpreter must be chosen before triton is imported."""

from __future__ import annotations

import torch

from mify.kernels.attention import gqa_decode_ref, gqa_decode_triton
from mify.testing import assert_as_exact_as_torch

FP8 = torch.float8_e4m3fn


def case(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, page: int, cache: torch.dtype, splits: int) -> None:
    torch.manual_seed(heads)
    lengths = torch.tensor([130, 0, 1, 64], dtype=torch.int32)
    q = torch.randn(4, heads, dim).to(dtype)
    k_scale = v_scale = table = None
    if page:
        columns = -(-130 // page)
        shape = (4 * columns + 1, page, kv_heads, dim)
        table = torch.randperm(shape[0])[: 4 * columns].view(4, columns).to(torch.int32)
    else:
        shape = (4, 133, kv_heads, dim)
    k, v = (torch.randn(shape).to(cache) for _ in range(2))
    if cache == FP8:
        k_scale, v_scale = torch.rand(kv_heads) + 0.5, torch.rand(kv_heads) + 0.5
    arguments = (k, v, lengths, table, k_scale, v_scale, dim**-0.5)
    out = gqa_decode_triton.forward(q, *arguments, splits)
    plain = gqa_decode_ref.forward(q, *arguments)
    wide = [x.double() if x.is_floating_point() and x.dtype != FP8 else x for x in (k, v)]
    if cache == FP8:
        wide = [k.double(), v.double()]
    scales = [None if s is None else s.double() for s in (k_scale, v_scale)]
    exact = gqa_decode_ref.forward(q.double(), *wide, lengths, table, *scales, dim**-0.5)
    assert_as_exact_as_torch(out, plain, exact)
    assert (out[1] == 0).all()
    print("as exact as torch", dtype, heads, kv_heads, dim, page, cache, splits)


for dtype in (torch.float32, torch.float16):
    case(dtype, 8, 2, 64, 16, dtype, 3)
    case(dtype, 5, 1, 32, 0, dtype, 1)
    case(dtype, 18, 1, 16, 7, dtype, 2)
    case(dtype, 2, 2, 16, 32, FP8, 4)
