"""Chunks over paged caches in Triton's interpreter, or on a GPU where there is one; fp64 is the judge."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_gqa_extend import LENGTHS, NEW, given, oracle

from mify.kernels import gqa_extend, last_impl
from mify.kernels.attention.gqa_decode import FP8
from mify.testing import assert_as_exact_as_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (5, 1, 16), (20, 4, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_as_exact_as_torch(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    arguments = given(heads, kv_heads, dim, dtype)
    plain, exact = gqa_extend(**arguments, impl="ref"), oracle(arguments)
    there = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    assert_as_exact_as_torch(gqa_extend(**there, impl="triton").cpu(), plain, exact)
    assert last_impl("gqa_extend") == "triton"
    strided = torch.randn(sum(NEW), 2 * heads, dim, device=DEVICE).to(dtype)
    strided[:, ::2] = there["q"]
    assert_as_exact_as_torch(gqa_extend(**there | {"q": strided[:, ::2]}, impl="triton").cpu(), plain, exact)


def test_fp8_caches_carry_a_scale_a_head() -> None:
    arguments = given(4, 2, 64, cache=FP8)
    scales = torch.tensor([0.5, 2.0]), torch.tensor([3.0, 0.25])
    there = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    out = gqa_extend(**there, k_scale=scales[0].to(DEVICE), v_scale=scales[1].to(DEVICE), impl="triton")
    torch.testing.assert_close(out.cpu().double(), oracle(arguments, scales), atol=1e-5, rtol=1e-5)


def test_lengths_and_pages_that_cannot_be_are_nan_not_a_crash() -> None:
    from mify.kernels.attention import gqa_extend_triton

    arguments = given(4, 2, 16)
    lengths, table = arguments["lengths"].clone(), arguments["page_table"].clone()
    lengths[0], lengths[3], table[4, 1] = 3, 10**6, -7
    there = [x.to(DEVICE) for x in (arguments["q"], arguments["k_cache"], arguments["v_cache"])]
    bounds = arguments["cu_seqlens"].to(DEVICE)
    out = gqa_extend_triton.forward(
        *there, bounds, lengths.to(DEVICE), table.to(DEVICE), max(NEW), None, None, 0.25
    )  # fmt: skip
    right = oracle(arguments)
    assert out[: NEW[0]].isnan().all()
    assert out[6:39].isnan().all()
    assert out[39:].isnan().all()
    torch.testing.assert_close(out[5:6].cpu().double(), right[5:6], atol=1e-5, rtol=1e-5)
    assert LENGTHS[2] == 1
