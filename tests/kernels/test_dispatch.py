"""The choice of a backend: pure, explained, and overridden by one argument or one variable."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import mify.kernels.attention.gqa
import mify.kernels.norm.norm  # noqa: F401
from mify.kernels import dispatch, gqa_attention, last_impl
from mify.kernels.dispatch import Backend, Device, choose

CPU = Device("cpu")
SHAPE = {"tokens": 8, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "max_seqlen": 8, "window": 0, "causal": 1,
         "deterministic": 0, "mean_length": 8, "equal_lengths": 1, "eager": 1, "size": 16, "weight_is_float32": 1,
         "vocab": 9, "batch": 1, "group": 2, "page_size": 0, "cache_bytes": 2, "num_rows": 1, "context": 8}  # fmt: skip


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_fp16(device: Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
        return "" if dtype == torch.float16 else "it takes float16 only"

    for op in dispatch._MODULES:
        assert dispatch._known(op)  # so that none registers itself in the toy table later
    table = {
        "toy": (Backend("fast", only_fp16), Backend("triton", lambda *_: ""), Backend("ref", lambda *_: "")),
        "other": (Backend("ref", lambda *_: ""),),
    }
    monkeypatch.setattr(dispatch, "_BACKENDS", table)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("op", "impl", "dtype", "missing", "expected"),
    [
        ("toy", "auto", torch.float16, {}, "fast"),
        ("toy", "auto", torch.float32, {}, "triton"),
        ("toy", "auto", torch.float32, {"triton": "not installed"}, "ref"),
        ("toy", "ref", torch.float16, {}, "ref"),
        ("toy", "toy=triton", torch.float16, {}, "triton"),
        ("toy", "other=ref", torch.float16, {}, "fast"),
        ("toy", "toy=ref,other=ref", torch.float16, {}, "ref"),
        ("other", "triton", torch.float16, {}, "ref"),
        ("other", "toy=triton", torch.float16, {}, "ref"),
    ],
)
def test_choice(op: str, impl: str, dtype: torch.dtype, missing: dict[str, str], expected: str) -> None:
    assert choose(op, impl, Device("cpu", missing=missing), dtype, {}) == expected


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("op", "impl", "missing", "words"),
    [
        ("toy", "fast", {}, "cannot run here: it takes float16 only"),
        ("toy", "triton", {"triton": "not installed"}, "cannot run here: not installed"),
        ("toy", "quick", {}, "'quick' is no backend of 'toy'; it has fast, triton, ref"),
        ("toy", "toy=quick", {}, "no backend"),
        ("other", "other=triton", {}, "no backend"),
        ("toy", "tyo=ref", {}, "unknown op 'tyo'"),
        ("absent", "auto", {}, "op 'absent' is unknown"),
    ],
)
def test_a_wish_that_cannot_be_met_says_why(op: str, impl: str, missing: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(op, impl, Device("cpu", missing=missing), torch.float32, {})


def test_every_op_ends_in_a_backend_that_always_runs() -> None:
    for op, backends in dispatch.ops().items():
        assert backends[-1].name == "ref"
        for device in (CPU, Device("cuda", (9, 0)), Device("cuda", (7, 5))):
            assert choose(op, "ref", device, torch.float64, SHAPE) == "ref"


def test_variable_and_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.randn(8, 4, 16), torch.randn(8, 2, 16)
    cu = torch.tensor([0, 8], dtype=torch.int32)
    default = choose("gqa", "auto", CPU, torch.float32, SHAPE)
    assert default != "ref"
    for variable, argument, expected in (
        (None, "auto", default),
        ("ref", "auto", "ref"),
        ("gqa=ref", "auto", "ref"),
        ("norm=ref", "auto", default),
        ("ref", "gqa=sdpa", "sdpa"),
        ("ref", "sdpa", "sdpa"),
    ):
        monkeypatch.setenv("MIFY_IMPL", variable) if variable else monkeypatch.delenv("MIFY_IMPL", raising=False)
        gqa_attention(q, k, k, cu, 8, impl=argument)
        assert last_impl("gqa") == expected
    assert last_impl("never") is None


def test_a_wish_for_an_op_that_has_not_run_yet_is_known() -> None:
    code = """
import torch
from mify.kernels import dispatch, rms_norm, last_impl
rms_norm(torch.ones(2, 4), torch.ones(4), impl="gqa_decode=ref,norm=ref")
rms_norm(torch.ones(2, 4), torch.ones(4), impl="sdpa")
assert last_impl("norm") != "ref"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mify.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
