"""Decode attention: the contract, plain torch against an oracle of its own, and the Triton twin in its interpreter.

The CUDA kernel is tested in test_gqa_decode_cuda.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mify.kernels.attention.gqa_decode import FP8, MAX_SPLITS, SPLIT_UNIT, choose_splits, gqa_decode
from mify.kernels.dispatch import Device, choose, last_impl
from mify.testing import assert_as_exact_as_torch


def oracle(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """Head by head in fp64. keys[b], values[b]: (length, Hkv, D) fp64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b, (k, v) in enumerate(zip(keys, values, strict=True)):
        if not len(k):
            continue
        group = q.shape[1] // k.shape[1]
        for h in range(q.shape[1]):
            weights = torch.softmax(k[:, h // group] @ q[b, h].double() * scale, 0)
            out[b, h] = weights @ v[:, h // group]
    return out


def paged(
    lengths: list[int], kv_heads: int, dim: int, page_size: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """k_cache, v_cache, page_table of shuffled pages, and each sequence's keys and values. What is unused is NaN."""
    generator = torch.Generator().manual_seed(seed)
    columns = max(1, -(-max(lengths, default=0) // page_size)) + 1
    pages = len(lengths) * columns + 2
    caches = [torch.full((pages, page_size, kv_heads, dim), float("nan")).to(dtype) for _ in range(2)]
    table = torch.randperm(pages, generator=generator)[: len(lengths) * columns].view(len(lengths), columns)
    sequences: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, length in enumerate(lengths):
        for cache, kept in zip(caches, sequences, strict=True):
            rows = torch.randn(length, kv_heads, dim, generator=generator).to(dtype)
            for at in range(length):
                cache[table[row, at // page_size], at % page_size] = rows[at]
            kept.append(rows.double())
        table[row, -(-length // page_size) :] = 10**6
    return caches[0], caches[1], table.to(torch.int32), *sequences


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (5, 1, 16), (3, 3, 40), (20, 4, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_plain_torch_equals_an_oracle(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    lengths = [37, 0, 1, 64]
    q = torch.randn(4, heads, dim).to(dtype)
    k_cache, v_cache, table, keys, values = paged(lengths, kv_heads, dim, 16, dtype)
    out = gqa_decode(q, k_cache, v_cache, torch.tensor(lengths, dtype=torch.int32), page_table=table, impl="ref")
    assert last_impl("gqa_decode") == "ref"
    assert out.dtype == dtype
    exact = oracle(q, keys, values, dim**-0.5)
    limits = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
    assert (out.double() - exact).abs().max() < limits[dtype]
    assert (out[1] == 0).all()


def test_a_contiguous_cache_is_a_page_a_sequence() -> None:
    lengths = torch.tensor([5, 9], dtype=torch.int32)
    q = torch.randn(2, 4, 32)
    k, v = torch.randn(2, 11, 2, 32), torch.randn(2, 11, 2, 32)
    expected = oracle(
        q, [k[b, :n].double() for b, n in enumerate(lengths)], [v[b, :n].double() for b, n in enumerate(lengths)], 0.3
    )
    torch.testing.assert_close(gqa_decode(q, k, v, lengths, scale=0.3).double(), expected, atol=1e-6, rtol=1e-5)
    # Any layout of the cache, and a q that is a slice, give the same.
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    wide = torch.randn(2, 8, 64)
    wide[:, ::2, :32] = q
    again = gqa_decode(wide[:, ::2, :32], *heads_first, lengths, scale=0.3)
    torch.testing.assert_close(again.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (5, 1, 16), (3, 3, 40), (20, 4, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_contiguous_caches_on_a_cpu(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    """What lies behind a sequence's end is NaN; the layouts are those of a cache of many layers and of heads first."""
    lengths = [37, 0, 1, 64]
    counts = torch.tensor(lengths, dtype=torch.int32)
    q = torch.randn(4, heads, dim).to(dtype)
    k, v = (torch.full((4, 70, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    for row, length in enumerate(lengths):
        k[row, :length], v[row, :length] = torch.randn(2, length, kv_heads, dim).to(dtype)
    exact = oracle(q, *([x[b, :n].double() for b, n in enumerate(lengths)] for x in (k, v)), dim**-0.5)
    limits = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
    for change in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
        out = gqa_decode(q, change(k), change(v), counts)
        assert last_impl("gqa_decode") == ("cpu" if dtype == torch.float32 and dim % 16 == 0 else "ref")
        assert (out.double() - exact).abs().max() < limits[dtype]
        assert (out[1] == 0).all()
    assert (gqa_decode(q, k, v, torch.zeros_like(counts)) == 0).all()


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_inside_a_compiled_graph_impossible_lengths_and_pages_are_refused_too(impl: str) -> None:
    op = torch.ops.mify.gqa_decode
    q, k = torch.randn(2, 4, 16), torch.randn(2, 8, 2, 16)
    with pytest.raises(ValueError, match=r"lengths\[0\] is 9; it must be 0 to 8"):
        op(q, k, k, torch.tensor([9, -1], dtype=torch.int32), None, None, None, 0.25, 0, impl)
    table = torch.tensor([[0], [2]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"page"):
        op(q, k, k, torch.tensor([8, 1], dtype=torch.int32), table, None, None, 0.25, 0, impl)


def test_fp8_caches_carry_a_scale_a_head() -> None:
    lengths = [50, 3]
    q = torch.randn(2, 4, 64)
    k_cache, v_cache, table, keys, values = paged(lengths, 2, 64, 16, FP8)
    k_scale, v_scale = torch.tensor([0.5, 2.0]), torch.tensor([3.0, 0.25])
    out = gqa_decode(
        q,
        k_cache,
        v_cache,
        torch.tensor(lengths, dtype=torch.int32),
        page_table=table,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    scaled = [[x * s.double()[:, None] for x in xs] for xs, s in ((keys, k_scale), (values, v_scale))]
    torch.testing.assert_close(out.double(), oracle(q, *scaled, 64**-0.5), atol=1e-5, rtol=1e-5)


def _good() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 4, 16),
        "k_cache": torch.randn(6, 8, 2, 16),
        "v_cache": torch.randn(6, 8, 2, 16),
        "lengths": torch.tensor([9, 3], dtype=torch.int32),
        "page_table": torch.tensor([[0, 3], [5, 1]], dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"q": [1.0]}, TypeError, "q is a list"),
        ({"q": torch.zeros(2, 4)}, ValueError, "q has shape"),
        ({"q": torch.zeros(2, 4, 16, dtype=torch.int32)}, TypeError, "q has dtype"),
        ({"q": torch.randn(2, 3, 16)}, ValueError, "multiple"),
        ({"q": torch.randn(2, 4, 8)}, ValueError, "head dimension"),
        ({"k_cache": torch.randn(6, 8, 2, 16, dtype=torch.float64)}, TypeError, "k_cache has dtype"),
        ({"k_cache": torch.randn(6, 8, 2, 16).to(FP8)}, ValueError, "must be equal"),
        ({"v_cache": torch.randn(6, 8, 1, 16)}, ValueError, "must be equal"),
        ({"k_cache": torch.randn(6, 8, 16, 2).transpose(2, 3)}, ValueError, "contiguous"),
        ({"lengths": torch.tensor([9, 3])}, TypeError, "lengths has dtype"),
        ({"lengths": torch.tensor([9], dtype=torch.int32)}, ValueError, "lengths has 1"),
        ({"lengths": torch.tensor([17, 3], dtype=torch.int32)}, ValueError, "0 to 16"),
        ({"lengths": torch.tensor([9, -1], dtype=torch.int32)}, ValueError, "-1"),
        ({"page_table": torch.tensor([[0, 6], [5, 1]], dtype=torch.int32)}, ValueError, "0 to 5"),
        ({"page_table": torch.tensor([[0, -1], [5, 1]], dtype=torch.int32)}, ValueError, "page -1"),
        ({"page_table": torch.tensor([[0, 3]], dtype=torch.int32)}, ValueError, "page_table has 1"),
        ({"page_table": None}, ValueError, "needs page_table"),
        ({"k_scale": torch.ones(3)}, ValueError, "k_scale"),
        ({"v_scale": torch.ones(2, dtype=torch.float64)}, ValueError, "v_scale"),
        ({"num_splits": 129}, ValueError, "num_splits"),
        ({"num_splits": 1.5}, TypeError, "num_splits is 1.5"),
        ({"scale": -1.0}, ValueError, "scale is -1.0"),
        (
            {name: torch.zeros(6, 8, 2, 0) for name in ("k_cache", "v_cache")} | {"q": torch.zeros(2, 4, 0)},
            ValueError,
            "head dimension must be positive",
        ),
        ({name: torch.zeros(0, 8, 2, 16) for name in ("k_cache", "v_cache")}, ValueError, "at least one page"),
        ({"impl": "cuda"}, ValueError, "GPU"),
        ({"impl": "triton"}, ValueError, "GPU"),
        ({"impl": "magic"}, ValueError, "magic"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    gqa_decode(**_good())
    with pytest.raises(error, match=text):
        gqa_decode(**(_good() | changes))


def test_pages_that_are_not_used_may_say_anything() -> None:
    given = _good()
    given["lengths"] = torch.tensor([8, 0], dtype=torch.int32)
    given["page_table"] = torch.tensor([[2, 10**6], [-5, 7]], dtype=torch.int32)
    assert gqa_decode(**given).isfinite().all()


def test_an_empty_batch() -> None:
    given = _good()
    given |= {"q": torch.randn(0, 4, 16), "lengths": torch.zeros(0, dtype=torch.int32)}
    given["page_table"] = torch.zeros(0, 2, dtype=torch.int32)
    assert gqa_decode(**given).shape == (0, 4, 16)


def test_nothing_cached() -> None:
    """A cache without room for a key, contiguous or paged."""
    given = _good() | {"lengths": torch.zeros(2, dtype=torch.int32)}
    assert (gqa_decode(**given | {"page_table": torch.zeros(2, 0, dtype=torch.int32)}) == 0).all()
    empty = torch.zeros(2, 0, 2, 16)
    assert (gqa_decode(given["q"], empty, empty, given["lengths"]) == 0).all()


def test_the_op_is_well_registered_and_compiles_in_one_graph() -> None:
    given = _good()
    arguments = (
        given["q"],
        given["k_cache"],
        given["v_cache"],
        given["lengths"],
        given["page_table"],
        None,
        None,
        0.25,
        0,
        "ref",
    )
    torch.library.opcheck(torch.ops.mify.gqa_decode.default, arguments)
    compiled = torch.compile(lambda **named: gqa_decode(**named) * 2, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), gqa_decode(**given) * 2)


# ----------------------------------------------------------------------------------------------------- which, how many


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "expected"),
    [
        ({}, torch.bfloat16, (9, 0), "cuda"),
        ({"cache_bytes": 1}, torch.bfloat16, (8, 0), "cuda"),
        ({"cache_bytes": 1}, torch.float16, (8, 0), "ref"),
        ({"cache_bytes": 1}, torch.float16, (9, 0), "triton"),
        ({}, torch.float16, (9, 0), "triton"),
        ({}, torch.bfloat16, (7, 5), "triton"),
        ({"head_dim": 256}, torch.bfloat16, (9, 0), "triton"),
        ({"group": 24}, torch.bfloat16, (9, 0), "triton"),
        ({"page_size": 8}, torch.bfloat16, (9, 0), "triton"),
        ({"page_size": 48}, torch.bfloat16, (9, 0), "triton"),
        ({"page_size": 0}, torch.bfloat16, (9, 0), "cuda"),
        ({"head_dim": 96}, torch.bfloat16, (9, 0), "ref"),
        ({}, torch.float64, (9, 0), "ref"),
    ],
)
def test_the_dispatcher(
    monkeypatch: pytest.MonkeyPatch,
    shape: dict[str, int],
    dtype: torch.dtype,
    capability: tuple[int, int],
    expected: str,
) -> None:
    whole = {"batch": 4, "group": 4, "kv_heads": 8, "head_dim": 128, "page_size": 64, "cache_bytes": 2} | shape
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose("gqa_decode", "auto", Device("cuda", capability), dtype, whole) == expected
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    without = choose("gqa_decode", "auto", Device("cuda", capability, {"triton": "absent"}), dtype, whole)
    assert without == "ref"
    with pytest.raises(ValueError, match="not built|8.0"):
        choose("gqa_decode", "cuda", Device("cuda", capability), dtype, whole)


@pytest.mark.parametrize("processors", [108, 132])
def test_splits_fill_the_gpu_and_are_not_more_than_there_are_keys(processors: int) -> None:
    slots = 2 * processors
    for batch in (1, 2, 3, 7, 16, 33, 64, 200, 512):
        for kv_heads in (1, 4, 8):
            for keys in (1, 64, 65, 1024, 8192, 100_000):
                splits = choose_splits(batch, kv_heads, keys, processors)
                units = -(-keys // SPLIT_UNIT)
                assert 1 <= splits <= min(MAX_SPLITS, units)
                blocks = batch * kv_heads * min(splits, units)
                assert blocks >= 0.5 * slots or splits >= 0.5 * min(MAX_SPLITS, units)
    assert choose_splits(1, 8, 1024, 132) == 16
    assert choose_splits(512, 8, 4096, 132) == 1
    assert choose_splits(0, 8, 4096, 132) == 1


# ------------------------------------------------------------------------------------------------------------- triton


def test_the_triton_twin_in_the_interpreter() -> None:
    """fp32 and fp16 (the interpreter's bf16 product is broken), paged and not, FP8, empty sequences, by the rule."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("gqa_decode_interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("as exact as torch") == 8


def test_the_triton_twin_is_compiled_once_for_a_model() -> None:
    """What changes from batch to batch is no constant of the kernel's: it would be compiled for each."""
    pytest.importorskip("triton")
    from mify.kernels.attention import gqa_decode_triton

    fixed = {parameter.name for parameter in gqa_decode_triton._part_kernel.params if parameter.is_constexpr}
    assert fixed == {"KV_HEADS", "GROUP", "PAGE_SIZE", "D", "BLOCK_G", "BLOCK_N", "PAGED", "SCALED"}


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize("cache", [torch.bfloat16, FP8])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (20, 4, 128), (8, 8, 64), (48, 4, 128)])
def test_on_a_gpu(impl: str, cache: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    lengths = [1000, 0, 1, 63, 64, 65, 4096, 777]
    q = torch.randn(len(lengths), heads, dim).to(torch.bfloat16)
    k_cache, v_cache, table, keys, values = paged(lengths, kv_heads, dim, 64, cache)
    counts = torch.tensor(lengths, dtype=torch.int32)
    exact = oracle(q, keys, values, dim**-0.5)
    plain = gqa_decode(q, k_cache, v_cache, counts, page_table=table, impl="ref")
    on_gpu = [x.cuda() for x in (q, k_cache, v_cache, counts, table)]
    for splits in (0, 1, 7, 128):
        out = gqa_decode(*on_gpu[:4], page_table=on_gpu[4], num_splits=splits, impl=impl)
        assert_as_exact_as_torch(out.cpu(), plain, exact)


@pytest.mark.gpu
def test_a_captured_step_can_be_replayed_with_other_lengths() -> None:
    q = torch.randn(2, 8, 128, device="cuda").bfloat16()
    k, v = (torch.randn(2, 2048, 2, 128, device="cuda").bfloat16() for _ in range(2))
    lengths = torch.tensor([2048, 100], dtype=torch.int32, device="cuda")
    gqa_decode(q, k, v, lengths, impl="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gqa_decode(q, k, v, lengths, impl="cuda")
    for pair in ([2048, 100], [1, 0], [640, 1999]):
        lengths.copy_(torch.tensor(pair, dtype=torch.int32))
        graph.replay()
        expected = gqa_decode(q, k, v, lengths, impl="ref")
        torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_lengths_and_pages_that_cannot_be_are_nan_not_a_crash(impl: str) -> None:
    given = {name: x.cuda() for name, x in _good().items()}
    q, pages = torch.randn(4, 8, 64, device="cuda").bfloat16(), torch.randn(6, 16, 2, 64, device="cuda").bfloat16()
    lengths = torch.tensor([33, -1, 20, 20], dtype=torch.int32, device="cuda")
    table = torch.tensor([[0, 1], [0, 1], [0, 9], [2, 3]], dtype=torch.int32, device="cuda")
    out = gqa_decode(q, pages, pages, lengths, page_table=table, impl=impl)
    assert out[:3].isnan().all()
    assert out[3].isfinite().all()
    assert given["q"].is_cuda
