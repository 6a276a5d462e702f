"""The decode suite without a GPU: nothing is claimed to be measured there, and the roofline adds up by hand."""

from __future__ import annotations

import pytest
import torch

from mify.bench import bench_decode, decode_cost, suite
from mify.bench.decode_cost import FORMATS, Load
from mify.bench.suite import Options, Targets
from mify.config import model_config
from mify.hardware import GPU_SPECS

TINY, LARGE = model_config("mify-tiny"), model_config("mify-2.5b")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_suite_is_found_and_flown() -> None:
    from mify.bench.autopilot import plan

    assert "decode" in suite.available()
    assert "decode-engine" in {part.name for part in plan()}


def test_rows_without_a_gpu_say_that_nothing_was_measured() -> None:
    rows = bench_decode.run(Options("decode", quick=True, cases=("2.5b-*",), targets=Targets.load("h200")))
    assert {row.status for row in rows} == {"not measured", "predicted"}
    assert all(row.value is None and "no GPU" in row.note for row in rows if row.status == "not measured")
    paper = [row for row in rows if row.metric == "output rate over the paper's"]
    assert {row.target for row in paper if row.case == "2.5b-128-128"} == {"ratio >= 5"}
    assert all("8,658" in row.note and "128 tokens in and 128 out" in row.note for row in paper[:1])
    predicted = {(row.impl, row.case, row.metric): row.value for row in rows if row.status == "predicted"}
    for (impl, case, metric), value in predicted.items():
        assert value is not None
        if "H100" in impl:
            other = predicted[impl.replace("H100", "H200"), case, metric]
            assert other is not None
            assert other >= value


def test_greedy_tokens_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    rows = bench_decode.run(Options("decode", quick=True, rounds=2, cases=("tiny-b8",), targets=Targets.load("cpu")))
    by_metric = {row.metric: row for row in rows if row.impl == "mify"}
    assert by_metric["tokens that differ from transformers"].status == "pass"
    assert by_metric["output rate"].rival == "transformers"
    assert by_metric["output rate"].ratio is not None


def test_a_token_at_batch_one_reads_every_weight_once() -> None:
    load = Load(1, 100, 1)
    one = decode_cost.step(TINY, load, 100, FORMATS["bf16"])
    # attention, ffn and head in bf16; keys and values of 100 tokens; one activation row, queries and lengths beside.
    weights = 2 * (TINY.num_parameters() - (2 * TINY.num_layers + 1) * TINY.hidden_size)
    cache = 100 * TINY.num_layers * 2 * TINY.num_kv_heads * TINY.head_dim * 2
    assert 0 < one.read - weights - cache < 8192
    eight = decode_cost.step(TINY, load, 100, FORMATS["fp8"])
    head = 2 * TINY.vocab_size * TINY.hidden_size
    assert 0 < eight.read - (weights - head) // 2 - head - cache // 2 < 8192


def test_the_rate_is_that_of_its_passes() -> None:
    spec = GPU_SPECS["H200"]
    for formats in FORMATS.values():
        load = Load(64, 128, 128)
        first, steps = decode_cost.seconds(LARGE, load, formats, spec)
        assert decode_cost.rate(LARGE, load, formats, spec) == pytest.approx(64 * 128 / (first + steps))
        exact = sum(
            decode_cost.step(LARGE, load, 128 + at, formats).seconds(spec.reached_bf16, spec.reached_bandwidth)
            for at in range(128)
        )
        assert steps == pytest.approx(exact, rel=0.02)
    slow, fast = (decode_cost.rate(LARGE, Load(512, 128, 128), FORMATS[name], spec) for name in ("bf16", "fp8"))
    assert 1.5 < fast / slow < 2.2
