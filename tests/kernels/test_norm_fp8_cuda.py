"""The CUDA norm that writes FP8 without a GPU: run on emulated clusters, its machine code read."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

from mify.bench.tune_kernels import knobs
from mify.kernels import dispatch, measured
from mify.kernels.norm import norm_fp8_cuda
from mify.kernels.norm.norm_fp8 import rms_norm_fp8
from mify.kernels.quantize import fp8
from mify.kernels.quantize.fp8 import Parts, padded
from mify.kernels.quantize.quantize import quantize_fp8

EPS = 1e-5
POINTERS = "x residual total weight inverse data scale data_t scale_t delayed largest"
BF16 = torch.bfloat16


class Params(ctypes.Structure):
    """NormFp8Params of csrc/norm/norm_fp8.hpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS.split()),
        *((name, ctypes.c_int64) for name in ("x_row", "residual_row", "rows", "rows_padded")),
        *((name, ctypes.c_int32) for name in ("size", "cluster", "weight_is_float")),
        ("eps", ctypes.c_float),
    ]


@pytest.fixture(scope="module")
def emulator(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = emulated.library("norm_fp8", Params, checkout, tmp_path_factory.mktemp("emulation"))
    loaded.emulation_error.restype = ctypes.c_char_p
    return loaded


def emulate(
    emulator: ctypes.CDLL, x: Tensor, residual: Tensor | None, weight: Tensor, scale: Tensor | None, cluster: int = 0,
    seed: int = 0,
) -> tuple[Parts, Tensor | None, Tensor]:  # fmt: skip
    """Runs the kernel; every output begins as something that shows where it is not written."""
    rows, size = x.shape
    cluster = cluster or emulator.cluster_of(ctypes.c_int64(size))
    parts = fp8.empty(x, scale is None, True)
    for part in parts:
        part.view(torch.uint8).fill_(0x7F) if part.element_size() == 1 else part.fill_(float("nan"))
    inverse = torch.full((rows, 1), float("nan"))
    total = None if residual is None else torch.full_like(x, float("nan")).contiguous()
    largest = torch.full((padded(rows) // 128 * cluster,), float("nan"))
    tensors = (x, residual, total, weight, inverse, *parts[:4], scale, largest)
    params = Params(
        *(None if t is None else t.data_ptr() for t in tensors),
        x.stride(0), 0 if residual is None else residual.stride(0), rows, padded(rows),
        size, cluster, weight.dtype == torch.float32, EPS,
    )  # fmt: skip
    if emulator.emulate_norm_fp8(ctypes.byref(params), ctypes.c_uint(seed)):
        raise RuntimeError(emulator.emulation_error().decode())
    return fp8.with_amax(parts, largest, scale), total, inverse


def check(
    found: tuple[Parts, Tensor | None, Tensor], x: Tensor, residual: Tensor | None, weight: Tensor, scale: Tensor | None
) -> None:
    """The sum and every bit behind 1/rms as plain torch gives them; 1/rms itself to the rounding of its sum."""
    parts, total, inverse = found
    normed = x if residual is None else x + residual
    if residual is not None:
        assert total is not None
        assert torch.equal(total, normed)
    exact = torch.rsqrt(normed.double().square().mean(1, keepdim=True) + EPS)
    torch.testing.assert_close(inverse.double(), exact, rtol=1e-6, atol=0)
    y = (normed.float() * inverse * weight.float()).to(BF16)
    expected = quantize_fp8(y, scale=scale, impl="ref")
    for name, a, b in zip(fp8.Fp8._fields, fp8.collect(parts, scale, True), expected, strict=True):
        assert (a is None) == (b is None), name
        if a is None or b is None:
            continue
        kind = torch.uint8 if a.element_size() == 1 else torch.int32
        assert torch.equal(a.contiguous().view(kind), b.contiguous().view(kind)), name


def inputs(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-3, 2, size)
    return tuple((torch.randn(*s, generator=g) * spread).to(BF16) for s in ((rows, size), (rows, size), (size,)))  # type: ignore[return-value]


@pytest.mark.parametrize("delayed", [None, 0.013])
@pytest.mark.parametrize(
    ("rows", "size", "residual", "wide_weight", "cluster"),
    [(1, 128, False, False, 0), (130, 256, True, True, 2), (127, 640, True, False, 0), (256, 512, False, False, 3)],
)
def test_every_bit_is_that_of_plain_torch(
    emulator: ctypes.CDLL, rows: int, size: int, residual: bool, wide_weight: bool, cluster: int, delayed: float | None
) -> None:
    x, other, weight = inputs(rows, size, seed=rows)
    weight = weight.float() if wide_weight else weight
    scale = None if delayed is None else torch.tensor(delayed)
    added = other if residual else None
    check(emulate(emulator, x, added, weight, scale, cluster), x, added, weight, scale)


def test_the_order_of_threads_changes_nothing(emulator: ctypes.CDLL) -> None:
    x, residual, weight = inputs(128, 512)
    first = emulate(emulator, x, residual, weight, None, 2)
    for seed in (1, 2):
        again = emulate(emulator, x, residual, weight, None, 2, seed)
        for a, b in zip(first[0], again[0], strict=True):
            kind = torch.uint8 if a.element_size() == 1 else torch.int32
            assert torch.equal(a.view(kind), b.view(kind))
        assert torch.equal(first[2], again[2])


def test_rows_with_gaps_zeros_infinity_and_nan(emulator: ctypes.CDLL) -> None:
    x, residual, weight = inputs(20, 256)
    wide = torch.full((20, 512), float("nan")).to(BF16)
    wide[:, 256:] = x
    x = wide[:, 256:]
    x[0], residual[0] = 0.0, 0.0
    check(emulate(emulator, x, residual, weight, None), x, residual, weight, None)
    x[3, 7], x[4, 200], weight[5] = float("nan"), float("inf"), float("inf")
    (data, _, data_t, scale_t, _), _, _ = emulate(emulator, x, residual, weight, None)
    assert data[3].float().isnan().all()
    assert data[4, 200].float().isnan()
    assert (data[[0, 1, 2, 6], 6].float().isfinite()).all()
    assert (data_t.view(torch.uint8)[:, 20:] == 0).all()
    assert scale_t.shape == (256, 1)


def test_how_many_blocks_share_128_rows(emulator: ctypes.CDLL) -> None:
    """Each holds at least a tile, two fit on a multiprocessor where the portable cluster allows, one always does."""
    for blocks in range(1, 60):
        cluster = emulator.cluster_of(ctypes.c_int64(blocks * 128))
        if blocks * 128 > norm_fp8_cuda.MOST_COLUMNS:
            assert cluster == 0
            continue
        assert 1 <= cluster <= min(8, blocks)
        held = emulator.shared_bytes(ctypes.c_int64(blocks * 128), cluster)
        assert held + 1024 <= 228 << 10
        assert 2 * (held + 1024) <= 228 << 10 or blocks > 24
    assert emulator.cluster_of(ctypes.c_int64(2560)) == 7


def test_the_machine_code_spills_nothing() -> None:
    from mify.bench import static

    if importlib.util.find_spec("mify._cuda") is None or static.cuobjdump() is None:
        pytest.skip("mify._cuda or cuobjdump is not here")
    (report,) = [r for r in static.cuda_kernels() if "norm_fp8_kernel" in r.name and r.architecture == 90]
    assert (report.spilled_bytes, report.local_accesses) == (0, 0)
    assert report.registers <= 128, "two blocks of 256 threads on a multiprocessor"


HOPPER = dispatch.Device("cuda", (9, 0))
SHAPE = {"size": 2560, "transpose": 1}


def test_what_it_takes_goes_to_it() -> None:
    if importlib.util.find_spec("mify._cuda") is None:
        pytest.skip("mify._cuda is not built")
    assert dispatch.choose("norm_fp8", "auto", HOPPER, BF16, SHAPE) == "cuda"
    measured_otherwise = measured.Entry("norm_fp8", "toy", "bfloat16", SHAPE, {"cuda": 2.0, "triton": 1.0})
    toy = dispatch.Device("cuda", (9, 0), name="toy")
    assert dispatch.order("norm_fp8", toy, BF16, SHAPE, [measured_otherwise])[0] == "triton"
    (knob,) = [knob for knob in knobs("cpu", torch.float32, scale=8192) if knob.kernel == "norm_fp8"]
    assert knob.shape == SHAPE
    for device, dtype, change, reason in (
        (dispatch.Device("cpu"), BF16, {}, "GPU"),
        (dispatch.Device("cuda", (8, 9)), BF16, {}, "9.0, this GPU has 8.9"),
        (HOPPER, torch.float16, {}, "bfloat16"),
        (HOPPER, BF16, {"transpose": 0}, "both layouts"),
        (HOPPER, BF16, {"size": 2568}, "multiple of 128"),
        (HOPPER, BF16, {"size": 6272}, "up to 6144"),
    ):
        assert reason in norm_fp8_cuda.refuses(device, dtype, SHAPE | change)
        with pytest.raises(ValueError, match="cannot run here"):
            dispatch.choose("norm_fp8", "cuda", device, dtype, SHAPE | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 192}, "multiple of 128"),
        ({"size": 6272}, "at most 6144"),
        ({"rows": 0}, "rows is 0"),
        ({"x": 0}, "x is a null pointer"),
        ({"x": 264}, "x is not aligned"),
        ({"residual": 256, "total": 0}, "total is a null pointer"),
        ({"x_row": 2564}, "x_row is 2564"),
        ({"delayed": 256}, "largest is a null pointer"),
        ({"scale_t": 0}, "scale_t is a null pointer"),
        ({"data_t": 264}, "data_t is not aligned"),
    ],
)
def test_the_binding_refuses_before_any_launch(change: dict[str, Any], words: str) -> None:
    cuda = pytest.importorskip("mify._cuda")
    given = {
        "x": 256, "residual": 0, "total": 0, "weight": 256, "inverse": 256, "data": 256, "scale": 256, "data_t": 256,
        "scale_t": 256, "delayed": 0, "largest": 0, "x_row": 2560, "residual_row": 0, "rows": 8, "size": 2560,
        "weight_is_float": False, "eps": EPS, "stream": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        cuda.norm_fp8(**given | change)


@pytest.mark.gpu
@pytest.mark.parametrize("delayed", [None, 0.013])
@pytest.mark.parametrize(
    ("rows", "size", "residual", "wide_weight"),
    [(1, 128, False, False), (4096, 2560, True, False), (300, 768, True, True), (257, 6144, False, False)],
)
def test_on_a_gpu(rows: int, size: int, residual: bool, wide_weight: bool, delayed: float | None) -> None:
    x, other, weight = (t.cuda() for t in inputs(rows, size))
    weight = weight.float() if wide_weight else weight
    scale = None if delayed is None else torch.tensor(delayed, device="cuda")
    added = other if residual else None
    got = rms_norm_fp8(x, weight, EPS, residual=added, scale=scale, impl="cuda")
    quantized = got.quantized
    nothing = x.new_empty(0, dtype=torch.float32)
    assert quantized.data_t is not None
    assert quantized.scale_t is not None
    parts = (quantized.data, quantized.scale, quantized.data_t, quantized.scale_t,
             nothing if quantized.amax is None else quantized.amax)  # fmt: skip
    check((parts, got.total, got.inverse), x, added, weight, scale)
