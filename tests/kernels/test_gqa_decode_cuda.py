"""The CUDA decode kernel without a GPU: run on an emulated block, read as machine code, refused with bad arguments.

The emulation compiles the kernel's own source for the CPU; emulation/cuda_emulation.hpp says what it would find. What
it cannot say is how fast the kernel is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import re
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

from mify.kernels import checks
from mify.kernels.attention import gqa_decode_cuda, gqa_decode_ref
from mify.kernels.attention.gqa_decode import FP8
from mify.testing import assert_as_exact_as_torch

NAN = float("nan")
BF16 = torch.bfloat16
POINTERS = "q out k v page_table lengths k_scale v_scale partials arrivals"
STRIDES = (
    "q_batch_stride q_head_stride out_batch_stride out_head_stride k_page_stride k_slot_stride k_head_stride "
    "v_page_stride v_slot_stride v_head_stride table_stride"
)
COUNTS = "num_pages table_columns page_shift capacity batch kv_heads group num_splits"


class Params(ctypes.Structure):
    """GqaDecodeParams of csrc/attention/gqa_decode.hpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS.split()),
        *((name, ctypes.c_int64) for name in STRIDES.split()),
        *((name, ctypes.c_int32) for name in COUNTS.split()),
        ("scale_log2", ctypes.c_float),
    ]


@pytest.fixture(scope="module")
def emulator(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = emulated.library("gqa_decode", Params, checkout, tmp_path_factory.mktemp("emulation"))
    loaded.emulation_error.restype = ctypes.c_char_p
    return loaded


def emulate(
    emulator: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    page_table: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    num_splits: int = 1,
    seed: int = 0,
) -> Tensor:
    """Runs the kernel; workspace and output begin as NaN, the counters must end as zeros."""
    batch, heads, dim = q.shape
    kv_heads = k.shape[2]
    columns = 1 if page_table is None else page_table.shape[1]
    out = torch.full((batch, heads, dim), NAN).to(BF16)
    partials = torch.full((batch * heads * num_splits * (dim + 2),), NAN)
    arrivals = torch.zeros(batch * kv_heads, dtype=torch.int32)
    tensors = {
        "q": q, "out": out, "k": k, "v": v, "page_table": page_table, "lengths": lengths, "k_scale": k_scale,
        "v_scale": v_scale, "partials": partials if num_splits > 1 else None,
        "arrivals": arrivals if num_splits > 1 else None,
    }  # fmt: skip
    strides = [*q.stride()[:2], *out.stride()[:2], *k.stride()[:3], *v.stride()[:3]]
    strides.append(0 if page_table is None else page_table.stride(0))
    params = Params(
        *(None if x is None else x.data_ptr() for x in tensors.values()),
        *strides,
        k.shape[0],
        columns,
        31 if page_table is None else int(math.log2(k.shape[1])),
        k.shape[1] * columns,
        batch,
        kv_heads,
        heads // kv_heads,
        num_splits,
        dim**-0.5 * math.log2(math.e),
    )
    assert list(tensors) == POINTERS.split()

    def extent(x: Tensor) -> int:
        return (sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1) * x.element_size()

    failed = emulator.emulate_gqa_decode(
        ctypes.byref(params), dim, int(k.dtype == FP8),
        ctypes.c_void_p(k.data_ptr()), ctypes.c_int64(extent(k)),
        ctypes.c_void_p(v.data_ptr()), ctypes.c_int64(extent(v)), ctypes.c_uint(seed),
    )  # fmt: skip
    if failed:
        raise RuntimeError(emulator.emulation_error().decode())
    assert not arrivals.any()
    return out


def make(
    lengths: list[int], kv_heads: int, group: int, dim: int, cache: torch.dtype, page: int, seed: int
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """Arguments of a call, what is unused being NaN, and plain torch's result in bf16 and in fp64."""
    g = torch.Generator().manual_seed(seed)
    batch, heads = len(lengths), kv_heads * group
    counts = torch.tensor(lengths, dtype=torch.int32)
    columns = max(1, -(-max(lengths) // page)) if page else 1
    shape = (batch * columns + 3, page, kv_heads, dim) if page else (batch, max(64, max(lengths)), kv_heads, dim)
    table = (
        torch.randperm(shape[0], generator=g)[: batch * columns].view(batch, columns).to(torch.int32) if page else None
    )
    k, v = (torch.randn(shape, generator=g).to(cache) for _ in range(2))
    for x in (k, v):
        used = torch.zeros(shape[:2], dtype=torch.bool)
        for b, length in enumerate(lengths):
            for at in range(length):
                used[(int(table[b, at // page]), at % page) if table is not None else (b, at)] = True
        bits = x.view(torch.uint8) if cache == FP8 else x
        bits[~used] = 0x7F if cache == FP8 else NAN
    q = torch.randn(batch, heads, dim, generator=g).to(BF16)
    scales = [torch.rand(kv_heads, generator=g) + 0.5 if cache == FP8 else None for _ in range(2)]
    call = {"q": q, "k": k, "v": v, "lengths": counts, "page_table": table, "k_scale": scales[0], "v_scale": scales[1]}
    rest = (counts, table, *scales, dim**-0.5)
    plain = gqa_decode_ref.forward(q, k, v, *rest)
    wide = (counts, table, *(None if s is None else s.double() for s in scales), dim**-0.5)
    return call, (plain, gqa_decode_ref.forward(q.double(), k.double(), v.double(), *wide))


CASES = [
    # lengths, kv_heads, group, dim, page size, splits
    ([1, 0, 40], 1, 4, 128, 0, 1),
    ([200, 64, 65], 1, 4, 128, 16, 3),
    ([513], 1, 5, 128, 64, 4),
    ([300, 17], 1, 8, 128, 32, 2),
    ([150], 1, 9, 128, 16, 2),
    ([90], 2, 16, 128, 0, 2),
    ([260, 0], 1, 1, 64, 128, 5),
    ([129], 2, 12, 64, 16, 2),
    ([1100], 1, 3, 64, 16, 2),
]


@pytest.mark.parametrize("cache", [BF16, FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, (case[0][0], *case[1:]))))
def test_the_kernel_is_as_exact_as_torch(emulator: ctypes.CDLL, case: tuple[Any, ...], cache: torch.dtype) -> None:
    lengths, kv_heads, group, dim, page, splits = case
    call, (plain, exact) = make(lengths, kv_heads, group, dim, cache, page, seed=sum(lengths))
    out = emulate(emulator, **call, num_splits=splits)
    assert_as_exact_as_torch(out, plain, exact)


def test_the_order_of_threads_and_blocks_changes_nothing(emulator: ctypes.CDLL) -> None:
    call, _ = make([200, 65], 1, 4, 64, BF16, 16, seed=3)
    first = emulate(emulator, **call, num_splits=4, seed=0)
    for seed in range(1, 4):
        assert torch.equal(emulate(emulator, **call, num_splits=4, seed=seed), first)


def test_large_scores_and_one_dominant_key(emulator: ctypes.CDLL) -> None:
    call, _ = make([200], 1, 4, 128, BF16, 16, seed=5)
    call["q"] = call["q"] * 30
    rest = (call["lengths"], call["page_table"], None, None, 128**-0.5)
    plain = gqa_decode_ref.forward(call["q"], call["k"], call["v"], *rest)
    exact = gqa_decode_ref.forward(call["q"].double(), call["k"].double(), call["v"].double(), *rest)
    assert_as_exact_as_torch(emulate(emulator, **call, num_splits=3), plain, exact)


def test_lengths_and_pages_that_cannot_be_are_nan(emulator: ctypes.CDLL) -> None:
    call, (_, exact) = make([100, 100, 100, 100], 1, 4, 64, BF16, 16, seed=1)
    call["lengths"] = torch.tensor([100, -1, 10_000, 100], dtype=torch.int32)
    call["page_table"][3, 5] = 10**6
    out = emulate(emulator, **call, num_splits=2)
    assert out[1:].isnan().all()
    assert (out[0].double() - exact[0]).abs().max() < 0.02


def test_strided_queries_and_caches_with_heads_first(emulator: ctypes.CDLL) -> None:
    call, (plain, exact) = make([130, 70], 2, 4, 64, BF16, 0, seed=2)
    wide = torch.full((2, 16, 128), NAN).to(BF16)
    wide[:, ::2, 64:] = call["q"]
    call["q"] = wide[:, ::2, 64:]
    for name in "kv":
        call[name] = call[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_as_exact_as_torch(emulate(emulator, **call, num_splits=2), plain, exact)


def test_a_cache_of_more_than_two_billion_elements(emulator: ctypes.CDLL) -> None:
    """Pages 2^30 elements apart: offsets pass 2^31 and 2^32. Untouched memory costs nothing."""
    page_stride, pages = 1 << 30, 5
    try:
        memory = torch.empty(page_stride * (pages - 1) + (1 << 14), dtype=torch.uint8)
    except RuntimeError:
        pytest.skip("this machine does not lend 4 GiB of address space")
    cache = memory.view(FP8).as_strided((pages, 16, 1, 64), (page_stride, 64, 64, 1))
    for page in range(pages):
        cache[page] = torch.randn(16, 1, 64).to(FP8)
    table = torch.tensor([[4, 0, 3], [1, 2, 4]], dtype=torch.int32)
    q = torch.randn(2, 4, 64).to(BF16)
    lengths = torch.tensor([48, 40], dtype=torch.int32)
    out = emulate(emulator, q, cache, cache, lengths, page_table=table)
    small = torch.stack([page.double() for page in cache])
    exact = gqa_decode_ref.forward(q.double(), small, small, lengths, table, None, None, 0.125)
    plain = gqa_decode_ref.forward(q, small.to(BF16), small.to(BF16), lengths, table, None, None, 0.125)
    assert_as_exact_as_torch(out, plain, exact)


def test_the_emulation_finds_a_copy_from_outside_the_cache(emulator: ctypes.CDLL) -> None:
    call, _ = make([100], 1, 4, 64, BF16, 0, seed=1)
    call["lengths"] = torch.tensor([100], dtype=torch.int32)
    call["k"] = call["k"][:, :50].as_strided(call["k"].shape, call["k"].stride())
    short = call["v"].clone()[:, :99]
    call["v"] = short
    with pytest.raises(RuntimeError, match="outside the cache"):
        emulate(emulator, **(call | {"v": short.contiguous()}))


@pytest.mark.parametrize("fp8", [0, 1])
@pytest.mark.parametrize("dim", [64, 128])
def test_shared_memory_is_read_without_bank_conflicts(emulator: ctypes.CDLL, dim: int, fp8: int) -> None:
    assert emulator.worst_passes(dim, fp8, 0) == 1
    assert emulator.worst_passes(dim, fp8, 1) == 1
    assert emulator.stage_is_covered(dim, fp8) == 1


def test_splits_cover_every_key_once(emulator: ctypes.CDLL) -> None:
    found = (ctypes.c_int * 3)()
    for length in [*range(1, 300, 7), 1023, 1024, 1025, 100_000, 1 << 30]:
        for splits in (1, 2, 3, 16, 33, 128):
            at, active = 0, 0
            for split in range(splits):
                emulator.split_of(length, splits, split, found)
                begin, end, said = found
                if end > begin:
                    assert begin == at
                    at, active = end, active + 1
            assert at == length
            assert said == active


# ------------------------------------------------------------------------------------------------------- machine code


@pytest.fixture(scope="module")
def reports() -> list[Any]:
    from mify.bench import static

    if importlib.util.find_spec("mify._cuda") is None:
        pytest.skip("mify._cuda is not built")
    if static.cuobjdump() is None:
        pytest.skip("no cuobjdump to read compiled kernels with")
    return [report for report in static.cuda_kernels() if "gqa_decode_kernel" in report.name]


def test_every_variant_is_built_and_none_spills(reports: list[Any]) -> None:
    variants = set()
    for report in reports:
        dim, fp8, columns = map(int, re.search(r"ILi(\d+)ELNS_6KvTypeE(\d)ELi(\d)E", report.name).groups())  # type: ignore[union-attr]
        variants.add((report.architecture, dim, fp8, columns))
        assert report.spilled_bytes == 0, report
        assert report.local_accesses == 0, report
        # Two blocks of 128 threads on a multiprocessor of 65,536 registers.
        assert report.registers <= 255, report
        # D/16 products for the scores and as many for the values, for each tile of eight heads.
        assert report.tensor_core == {"HMMA": 2 * dim // 16 * columns}, report
        assert report.async_copies > 0, report
    assert variants == {(a, d, f, c) for a in (80, 90) for d in (64, 128) for f in (0, 1) for c in (1, 2)}


@pytest.mark.parametrize("which", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_the_triton_twin_compiles(monkeypatch: pytest.MonkeyPatch, which: int, capability: int) -> None:
    pytest.importorskip("triton")
    from mify.bench.static import SHARED_LIMIT
    from mify.kernels.ahead import build
    from mify.kernels.attention.gqa_decode_triton import cases

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    case = cases()[which]
    if capability == 80 and "fp8" in case.name:
        pytest.skip("Triton has no e4m3 on sm_80")
    built = build(case, capability)
    assert built.stack == built.local == 0
    assert built.instructions["HMMA"] > 0
    assert built.shared <= SHARED_LIMIT[capability]


# ---------------------------------------------------------------------------------------------------------- arguments


@pytest.fixture
def arguments() -> dict[str, Any]:
    return {
        "q": 256, "out": 256, "k": 256, "v": 256, "lengths": 256, "page_table": 256, "k_scale": 0, "v_scale": 0,
        "partials": 256, "arrivals": 256, "kv_type": "bf16", "head_dim": 128, "batch": 2, "kv_heads": 4, "group": 4,
        "num_splits": 2, "num_pages": 10, "page_size": 16, "table_columns": 4, "table_stride": 4,
        "q_strides": (2048, 128), "out_strides": (2048, 128), "k_strides": (8192, 512, 128),
        "v_strides": (8192, 512, 128), "scale": 0.1, "stream": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"q": 0}, "q is a null pointer"),
        ({"k": 264}, "k is not aligned to 16 bytes"),
        ({"partials": 0}, "partials is a null"),
        ({"arrivals": 258}, "arrivals is not aligned"),
        ({"kv_type": "int4"}, "int4"),
        ({"head_dim": 96}, "head_dim is 96"),
        ({"group": 17}, "group is 17"),
        ({"group": 0}, "group is 0"),
        ({"num_splits": 129}, "num_splits is 129"),
        ({"batch": -1}, "batch is -1"),
        ({"page_size": 24}, "page_size is 24"),
        ({"page_size": 8}, "page_size is 8"),
        ({"table_columns": 1 << 28}, "table_columns"),
        ({"k_strides": (8192, 513, 128)}, "a stride of k is 513"),
        ({"v_strides": (8192, 512)}, "page, slot, head"),
        ({"kv_type": "fp8_e4m3", "v_strides": (8192, 512, 136)}, "a stride of v is 136"),
        ({"page_table": 0, "num_pages": 1}, "one page a sequence"),
        ({"batch": 1 << 24, "kv_heads": 1 << 10}, "batch \\* kv_heads"),
    ],
)
def test_the_binding_refuses_before_any_launch(arguments: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    cuda = pytest.importorskip("mify._cuda")
    with pytest.raises(ValueError, match=text):
        cuda.gqa_decode(**(arguments | changes))


def test_the_extension_imports_without_a_driver_and_says_what_is_missing(arguments: dict[str, Any]) -> None:
    cuda = pytest.importorskip("mify._cuda")
    assert cuda.runtime_version >= 12000
    cuda.gqa_decode(**(arguments | {"batch": 0}))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="driver|device"):
            cuda.gqa_decode(**arguments)
        with pytest.raises(RuntimeError, match="driver|device"):
            cuda.gqa_decode_info(128, "bf16", 4)


def test_a_stride_that_means_nothing_is_not_passed_on() -> None:
    """Along a dimension of one element it may be odd, and the binding asks for multiples of 16 bytes."""
    cache = torch.empty_strided((1, 9, 1, 128), (9 * 128 + 3, 128, 5, 1), dtype=torch.bfloat16)
    assert [gqa_decode_cuda._stride(cache, dim) for dim in range(3)] == [0, 128, 0]
    assert checks.aligned_rows(cache) is cache


def test_counters_are_shared_on_a_stream_and_never_between_graphs() -> None:
    counters = gqa_decode_cuda.Counters(torch.device("cpu"), pool=64)
    early = counters.take(7, 8, capturing=True)
    first, again = (counters.take(1, 8, capturing=False) for _ in range(2))
    assert first.data_ptr() == again.data_ptr()
    other, larger = counters.take(2, 8, capturing=False), counters.take(1, 5000, capturing=False)
    captured = [counters.take(1, 20, capturing=True) for _ in range(4)]
    taken: list[Tensor] = [early, first, other, larger, *captured]
    spans = sorted((x.data_ptr(), x.data_ptr() + 4 * x.numel()) for x in taken)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(not x.any() for x in taken)
    # Three of twenty fit the pool of 64; the next plain launch renews it, the old one staying where graphs know it.
    counters.take(1, 8, capturing=False)
    assert counters.take(1, 20, capturing=True).data_ptr() not in {x.data_ptr() for x in captured}
