"""FP8 products: the emulation against fp64 and torch's own scaled matmul, what the GPU backend refuses, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import dispatch
from mify.kernels.gemm import gemm_torch
from mify.kernels.gemm.gemm import fp8_matmul
from mify.kernels.quantize.quantize import quantize_fp8
from mify.testing import assert_as_exact_as_torch

SIZES = [(1, 16, 16), (5, 48, 200), (130, 64, 384), (128, 128, 128)]


def operands(m: int, n: int, k: int, *, blocks: bool) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(m * 1000 + k)
    a, b = (torch.randn(rows, k, generator=generator) * torch.logspace(-2, 1, k) for rows in (m, n))
    scales = (None, None) if blocks else (a.abs().max() / 448, b.abs().max() / 448)
    return tuple(quantize_fp8(x, scale=scale) for x, scale in zip((a, b), scales, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_emulation_is_as_exact_as_torch(m: int, n: int, k: int, blocks: bool, dtype: torch.dtype) -> None:
    a, b = operands(m, n, k, blocks=blocks)
    got = fp8_matmul(a.data, a.scale, b.data, b.scale, dtype=dtype, impl="ref")
    exact = _wide(a).double() @ _wide(b).double().t()
    plain = (_wide(a).float() @ _wide(b).float().t()).to(dtype)
    assert_as_exact_as_torch(got, plain, exact)


def _wide(x: Any) -> Tensor:
    """data · scale in fp64, where it is exact."""
    scale = x.scale.double()
    if scale.dim():
        scale = scale.repeat_interleave(128, 1)[:, : x.data.shape[1]]
    return x.data.double() * scale


def test_the_emulation_equals_torchs_scaled_matmul() -> None:
    a, b = operands(32, 48, 256, blocks=False)
    tensor = F.ScalingType.TensorWise
    try:
        theirs = F.scaled_mm(a.data, b.data.t(), a.scale, tensor, b.scale, tensor, output_dtype=torch.float32)
    except NotImplementedError:
        pytest.skip(f"torch {torch.__version__} multiplies FP8 on a GPU only")
    ours = fp8_matmul(a.data, a.scale, b.data, b.scale, dtype=torch.float32, impl="ref")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert torch.equal(gemm_torch.forward(a.data, a.scale, b.data, b.scale, torch.float32), theirs)


def test_the_sum_is_wider_than_bf16() -> None:
    # 1 + 4096 · 2^-9 is 9; a running sum in bf16 would stay at 1.
    a = torch.full((1, 4097), 2.0**-9).to(torch.float8_e4m3fn)
    a[0, 0] = 1.0
    b = torch.ones(1, 4097).to(torch.float8_e4m3fn)
    one = torch.tensor(1.0)
    assert fp8_matmul(a, one, b, one, dtype=torch.float32).item() == 9.0


def test_scales_lie_as_the_blockwise_matmul_wants_them() -> None:
    a, _ = operands(130, 16, 384, blocks=True)
    assert gemm_torch.columns_first(a.scale) is a.scale
    turned = gemm_torch.columns_first(a.scale.contiguous())
    assert turned.stride() == (1, 130)
    assert torch.equal(turned, a.scale)


HOPPER, ADA, BLACKWELL, AMPERE = (dispatch.Device("cuda", at) for at in ((9, 0), (8, 9), (10, 0), (8, 0)))
SHAPE = {"m": 8192, "n": 2560, "k": 6912, "blocks": 0}


def test_what_the_gpu_backend_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8 = torch.float8_e4m3fn
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gemm_torch.refuses(HOPPER, fp8, SHAPE) == ""
    assert gemm_torch.refuses(HOPPER, fp8, SHAPE | {"blocks": 1}) == ""
    assert gemm_torch.refuses(ADA, fp8, SHAPE) == ""
    assert "capability 9 alone" in gemm_torch.refuses(ADA, fp8, SHAPE | {"blocks": 1})
    assert "capability 9 alone" in gemm_torch.refuses(BLACKWELL, fp8, SHAPE | {"blocks": 1})
    assert "8.9, this GPU has 8.0" in gemm_torch.refuses(AMPERE, fp8, SHAPE)
    assert "N = 24" in gemm_torch.refuses(HOPPER, fp8, SHAPE | {"n": 24})
    assert "CPU" in gemm_torch.refuses(dispatch.Device("cpu"), fp8, SHAPE)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "12.9" in gemm_torch.refuses(HOPPER, fp8, SHAPE | {"blocks": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(4, 32)}, "a has dtype torch.float32"),
        ({"b": torch.zeros(4, 16).to(torch.float8_e4m3fn)}, "b has shape"),
        ({"scale_a": torch.ones(3, 1)}, "scale_a has shape"),
        ({"scale_a": torch.ones(4, 1)}, "both be scalars or both be blocks"),
        ({"scale_b": torch.ones((), dtype=torch.float64)}, "scale_b has dtype"),
        ({"scale_b": torch.ones((), device="meta")}, "scale_b is on meta"),
        ({"b": torch.zeros(4, 32, device="meta").to(torch.float8_e4m3fn)}, "b is on meta"),
        ({"dtype": torch.float16}, "dtype is"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    zeros = torch.zeros(4, 32).to(torch.float8_e4m3fn)
    given = {"a": zeros, "scale_a": torch.ones(()), "b": zeros, "scale_b": torch.ones(()), "dtype": torch.float32}
    given |= change
    dtype = given.pop("dtype")
    with pytest.raises((TypeError, ValueError), match=message):
        fp8_matmul(**given, dtype=dtype)
