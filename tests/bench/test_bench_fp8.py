"""The FP8 suite without a GPU: nothing is claimed to be measured, the emulation is held to the rule, bytes add up."""

from __future__ import annotations

import pytest
import torch

from mify.bench import bench_fp8
from mify.bench.fp8_ops import product_sizes
from mify.bench.suite import Options, Targets
from mify.config import model_config
from mify.kernels import cost
from mify.kernels.gemm.gemm_cost import Linear, Speed, layer_quantization, layer_speedup, linears

TINY, LARGE = model_config("mify-tiny"), model_config("mify-2.5b")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_rows_without_a_gpu_say_that_nothing_was_measured() -> None:
    options = Options("fp8", quick=True, cases=("o_proj", "layer", "bytes"), targets=Targets.load("h200"))
    rows = bench_fp8.run(options)
    assert {row.status for row in rows} == {"not measured", "predicted"}
    assert all(row.value is None and row.note == "no GPU" for row in rows if row.status == "not measured")
    assert {row.target for row in rows if row.case == "layer" and row.status == "not measured"} == {"ratio >= 1.75"}
    assert {row.impl for row in rows if row.case == "layer" and row.value is None} == set(bench_fp8.LAYER)


def test_the_emulation_keeps_the_tolerance_rule() -> None:
    rows = bench_fp8.run(Options("fp8", quick=True, cases=("emulation",), targets=Targets.load("cpu")))
    assert len(rows) == 6
    assert {row.status for row in rows} == {"pass"}


def test_products_count_the_flops_of_the_layer() -> None:
    for shape in (TINY, LARGE):
        layers = linears(shape, 256)
        assert sum(one.n * one.k for one in layers) * shape.num_layers == (
            cost.parameters(shape).attention + cost.parameters(shape).ffn
        )
        for one in layers:
            parts = one.products()
            assert {part.flops for part in parts.values()} == {2 * 256 * one.n * one.k}
            assert {part.flops for part in one.in_bf16().values()} == {2 * 256 * one.n * one.k}
            assert sorted(product_sizes(one)["forward"]) == sorted((256, one.n, one.k))


def test_bytes_of_one_product_by_hand() -> None:
    one = Linear("x", 100, 256, 512).products()
    # x 100·512, W 256·512, 4 scales of 4 bytes for each of 356 rows; 100·256 bf16 results.
    assert one["forward"].read == 100 * 512 + 256 * 512 + 356 * 4 * 4
    assert one["forward"].written == 100 * 256 * 2
    # dy and x by tokens, padded to 128: one scale a row.
    assert one["wgrad"].read == (256 + 512) * 128 + (256 + 512) * 4
    assert one["wgrad"].written == 256 * 512 * 4


def test_fusing_saves_what_is_neither_written_nor_read_again() -> None:
    tokens, d, f = 8192, LARGE.hidden_size, LARGE.ffn_size
    apart = layer_quantization(LARGE, tokens, fused=False)["inputs"].bytes
    fused = layer_quantization(LARGE, tokens, fused=True)["inputs"].bytes
    assert apart - fused == tokens * (2 * d + f) * 4  # bf16 written and read, of two norms and SwiGLU


def test_predicted_speed_lies_below_the_ratio_of_the_products() -> None:
    speed = Speed(800e12, 1450e12, 4.2e12)
    times = [
        layer_speedup(LARGE, 8192, speed, fused=fused, weights=weights)
        for fused, weights in ((False, True), (True, True), (True, False))
    ]
    assert times == sorted(times)
    assert 1 < times[0] < times[-1] < 1450 / 800
