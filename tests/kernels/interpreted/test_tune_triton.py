"""Every knob of the tuner turns the kernel that it names: the names, sizes and candidates are those of the launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from mify.bench.bench_kernels import CASES
from mify.bench.tune_kernels import knobs
from mify.kernels import launch, measured
from mify.kernels.loss import ce_triton
from mify.kernels.mlp import glu_triton
from mify.kernels.norm import norm_fp8_triton, norm_triton
from mify.kernels.quantize import quantize_triton
from mify.kernels.rope import rotary_triton

MODULES = (ce_triton, glu_triton, norm_fp8_triton, norm_triton, quantize_triton, rotary_triton)


class Asked(Exception):
    pass


def test_every_knob(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    wanted = ""
    seen: tuple[Mapping[str, int], tuple[str, ...]] = {}, ()

    def chosen(kernel: str, x: torch.Tensor, size: int, candidates: Sequence[launch.Launch]) -> launch.Launch:
        nonlocal seen
        if kernel == wanted:
            seen = {"size": size}, tuple(launch.label(candidate) for candidate in candidates)
            raise Asked
        return candidates[0]

    def fastest_first(table: Any, op: str, device: str, dtype: str, shape: Mapping[str, int], like: Any) -> Any:
        nonlocal seen
        if op == wanted:
            seen = dict(shape), ()
            raise Asked
        return ()

    for module in MODULES:
        monkeypatch.setattr(module, "chosen", chosen)
    monkeypatch.setattr(measured, "fastest_first", fastest_first)
    # Backends are asked for by the dispatcher: tests/bench/test_tune_attention.py, tests/kernels/test_norm_fp8_cuda.py.
    found = [knob for knob in knobs(device, torch.float16, scale=8192) if knob.kernel not in ("gqa", "norm_fp8")]
    assert len({knob.kernel for knob in found}) == len(found)
    for knob in found:
        wanted = ""
        call = knob.make()
        wanted = knob.kernel
        with pytest.raises(Asked):
            call()
        shape, candidates = seen
        assert shape == knob.shape, knob.kernel
        assert not candidates or candidates == knob.candidates, knob.kernel
        assert any(knob.runs_in([case]) for case in CASES) or "delayed, one layout" in knob.kernel, knob.kernel
