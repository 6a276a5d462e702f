"""Several new tokens a sequence against paged caches: every backend of this machine, with fp64 as the judge."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from test_gqa_decode import paged
from torch import Tensor

from mify.kernels import cpu, gqa_decode, gqa_extend, last_impl
from mify.kernels.attention.gqa_decode import FP8
from mify.testing import assert_as_exact_as_torch

NEW, LENGTHS = [5, 0, 1, 33, 2], [37, 4, 1, 33, 130]


def given(heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32, cache: Any = None) -> dict[str, Any]:
    k_cache, v_cache, table, _, _ = paged(LENGTHS, kv_heads, dim, 16, cache or dtype)
    return {
        "q": torch.randn(sum(NEW), heads, dim).to(dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "cu_seqlens": torch.tensor([0, *itertools.accumulate(NEW)], dtype=torch.int32),
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "page_table": table,
        "longest": max(NEW),
    }


def oracle(arguments: dict[str, Any], scales: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Token by token and head by head in fp64, from the pages themselves."""
    q, table = arguments["q"].double(), arguments["page_table"]
    out = torch.zeros_like(q)
    for b, length in enumerate(LENGTHS):
        used = table[b, : -(-length // 16)].long()
        k, v = (arguments[name][used].flatten(0, 1)[:length].double() for name in ("k_cache", "v_cache"))
        if scales is not None:
            k, v = (x * s.double()[:, None] for x, s in zip((k, v), scales, strict=True))
        for i in range(NEW[b]):
            at, seen = sum(NEW[:b]) + i, length - NEW[b] + i + 1
            for h in range(q.shape[1]):
                own = h // (q.shape[1] // k.shape[1])
                weights = torch.softmax(k[:seen, own] @ q[at, h] * q.shape[2] ** -0.5, 0)
                out[at, h] = weights @ v[:seen, own]
    return out


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (5, 1, 16), (3, 3, 48), (20, 4, 128)])
@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_as_exact_as_torch(heads: int, kv_heads: int, dim: int, impl: str) -> None:
    arguments = given(heads, kv_heads, dim)
    exact, plain = oracle(arguments), gqa_extend(**arguments, impl="ref")
    out = gqa_extend(**arguments, impl=impl)
    assert last_impl("gqa_extend") == impl
    assert_as_exact_as_torch(out, plain, exact)
    strided = torch.randn(arguments["q"].shape[0], 2 * heads, 2 * dim)
    strided[:, ::2, :dim] = arguments["q"]
    assert torch.equal(gqa_extend(**arguments | {"q": strided[:, ::2, :dim]}, impl=impl), out)


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_fp8_caches_carry_a_scale_a_head(impl: str) -> None:
    arguments = given(4, 2, 64, cache=FP8)
    scales = torch.tensor([0.5, 2.0]), torch.tensor([3.0, 0.25])
    out = gqa_extend(**arguments, k_scale=scales[0], v_scale=scales[1], impl=impl)
    torch.testing.assert_close(out.double(), oracle(arguments, scales), atol=1e-5, rtol=1e-5)


def test_every_e4m3_value_is_read_as_torch_reads_it() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes.view(FP8).float().isfinite()
    values = torch.where(finite, codes, 0).view(16, 1, 1, 16).view(FP8)
    # One key a sequence: its weight is 1, so the value comes out as it is.
    q, ones = torch.zeros(16, 1, 16), torch.ones(16, dtype=torch.int32)
    assert torch.equal(gqa_decode(q, values, values, ones, impl="cpu")[:, 0], values.float()[:, 0, 0])
    nan = torch.full((1, 1, 1, 16), 0xFF, dtype=torch.uint8).view(FP8)
    assert gqa_decode(q[:1], nan, nan, ones[:1], impl="cpu").isnan().all()


def test_a_token_gets_the_same_bits_in_any_company() -> None:
    """Alone, in its chunk, or with other numbers of heads beside: what batching and chunks must not change."""
    arguments = given(6, 2, 64)
    together = gqa_extend(**arguments, impl="cpu")
    bounds = arguments["cu_seqlens"].tolist()
    for b, (start, end) in enumerate(itertools.pairwise(bounds)):
        for at in range(start, end):
            seen = torch.tensor([LENGTHS[b] - (end - 1 - at)], dtype=torch.int32)
            alone = gqa_decode(
                arguments["q"][at : at + 1], arguments["k_cache"], arguments["v_cache"], seen,
                page_table=arguments["page_table"][b : b + 1], impl="cpu",
            )  # fmt: skip
            assert torch.equal(alone[0], together[at])


@pytest.mark.parametrize("threads", [2, 5])
def test_the_same_bits_for_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.full((24,), 400, dtype=torch.int32)
    q, k, v = torch.randn(24, 8, 64), torch.randn(24, 400, 2, 64), torch.randn(24, 400, 2, 64)
    one = gqa_decode(q, k, v, lengths, impl="cpu")
    monkeypatch.setattr(cpu, "threads", lambda: threads)
    assert torch.equal(gqa_decode(q, k, v, lengths, impl="cpu"), one)


def test_the_baseline_code_agrees(tmp_path: Any) -> None:
    """What CPUs without AVX2 run, on the same numbers."""
    import os
    import subprocess
    import sys

    arguments = given(5, 1, 64) | {"impl": "cpu"}
    torch.save(arguments, tmp_path / "in.pt")
    code = (
        "import sys, torch; from mify.kernels import gqa_extend;"
        "torch.save(gqa_extend(**torch.load(sys.argv[1])), sys.argv[2])"
    )
    environment = os.environ | {"MIFY_CPU_DISABLE": "fma,avx2,avx512"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")], check=True, env=environment
    )
    exact = oracle(arguments)
    baseline = torch.load(tmp_path / "out.pt")
    assert_as_exact_as_torch(baseline, gqa_extend(**arguments | {"impl": "ref"}), exact)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": torch.zeros(41, 4)}, ValueError, "q has shape"),
        ({"cu_seqlens": torch.tensor([0, 41], dtype=torch.int32)}, ValueError, "cu_seqlens has 2 entries"),
        ({"longest": 32}, ValueError, "a segment of 33 tokens"),
        ({"longest": 0}, ValueError, "longest is 0"),
        ({"lengths": torch.tensor([4, 4, 1, 33, 130], dtype=torch.int32)}, ValueError, "has 5 new tokens"),
        ({"lengths": torch.tensor([37, 4, 1, 33, 999], dtype=torch.int32)}, ValueError, r"lengths\[4\] is 999"),
        ({"lengths": torch.tensor(LENGTHS)}, TypeError, "lengths has dtype"),
        ({"page_table": torch.zeros(5, 10, dtype=torch.int32) - 1}, ValueError, "page"),
        ({"page_table": torch.zeros(4, 10, dtype=torch.int32)}, ValueError, "page_table has 4 rows"),
        ({"k_scale": torch.ones(3)}, ValueError, "k_scale"),
        ({"impl": "magic"}, ValueError, "magic"),
    ],
)
@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_what_cannot_be_meant_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], text: str, impl: str
) -> None:
    with pytest.raises(error, match=text):
        gqa_extend(**(given(4, 2, 16) | {"impl": impl} | changes))


def test_the_op_is_well_registered() -> None:
    arguments = given(4, 2, 16)
    torch.library.opcheck(torch.ops.mify.gqa_extend.default, (*arguments.values(), None, None, 0.25, "ref"))
