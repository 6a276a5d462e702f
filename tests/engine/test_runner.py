"""Passes that a CUDA graph holds: without a GPU its replay is played, with one it is real."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_generate import PROMPTS, lively
from torch import Tensor

from mify.engine import Engine, Request, SamplingParams, runner
from mify.engine.cache import FP8, PagedCache
from mify.engine.runner import RowStep, bucket_sizes
from mify.generate import generate
from mify.kernels import last_impl
from mify.model import Model


def played(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """As `runner.captured`, with what it demands of a step: nothing that it holds may move from replay to replay."""
    step: RowStep = run.__self__  # type: ignore[attr-defined]
    for _ in range(3):
        run()
    out = run()

    def addresses() -> list[int]:
        cache = step._cache
        return [x.data_ptr() for x in (cache.keys, cache.values, cache.table, step._inputs, step._bounds)]

    before = addresses()

    def replay() -> Tensor:
        assert addresses() == before
        out.copy_(run())
        assert addresses() == before
        return out

    return replay


@pytest.mark.parametrize("settings", [{}, {"guesses": 5}, {"max_sequences": 3, "kv_tokens": 64, "guesses": 2}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_captured_passes_give_the_same_tokens(
    settings: dict[str, Any], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "captured", played)
    model = lively()
    requests = [
        Request(prompt, SamplingParams(10 + 7 * index, temperature, seed=index)) for index, prompt in enumerate(PROMPTS)
    ]
    free = Engine(model, **settings).run(requests)
    engine = Engine(model, **settings)
    engine._runner._buckets = bucket_sizes(8)
    assert engine.run(requests) == free
    assert {1, 4} <= set(engine._runner._steps), "whose requests ended went on in smaller graphs"


def test_buckets_leave_little_padding() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(3) == [1, 2, 3]
    assert bucket_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    sizes = bucket_sizes(512)
    assert sizes[-1] == 512
    assert len(sizes) < 40
    assert all(after <= 1.5 * before for before, after in itertools.pairwise(sizes) if before >= 16)


@pytest.mark.parametrize("impl", ["auto", "ref"])
def test_a_pass_compiles_in_one_graph(impl: str) -> None:
    model = lively()
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = impl
    graphs = 0

    def count(graph, inputs):  # type: ignore[no-untyped-def]
        nonlocal graphs
        graphs += 1
        return graph.forward

    results = []
    with torch.no_grad():
        for compiled in (False, True):
            cache = PagedCache(model, 4, 16, 3, dtype=torch.float32)
            for row in range(3):
                cache.assign(row, 0, [row + 1])
            step = RowStep(model, cache, 3, graph=False)
            if compiled:
                torch._dynamo.reset()
                step._step = torch.compile(step._run, backend=count, fullgraph=True, dynamic=False)
            rows = np.arange(3)
            results.append(
                [step(np.array(new), np.full(3, at), rows).clone() for at, new in enumerate([[1, 2, 3], [9, 9, 9]])]
            )
    assert graphs == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["auto", "triton", "gqa_decode=cuda", "ref"])
def test_captured_passes_on_a_gpu(impl: str) -> None:
    """Head dimension 64 and bfloat16, so that the CUDA kernel takes part; in fp32 too, where tokens must be equal."""
    changes = {"head_dim": 64, "num_query_heads": 4, "num_kv_heads": 2, "context": 256}
    for dtype in (torch.float32, torch.bfloat16):
        if impl == "gqa_decode=cuda" and dtype == torch.float32:
            continue
        base = lively(**changes)
        model = Model(base.config, impl=impl)
        model.load_state_dict(base.state_dict())
        model.to("cuda", dtype).eval()
        free = generate(model, PROMPTS, max_new_tokens=40, cuda_graph=False)
        held = generate(model, PROMPTS, max_new_tokens=40, cuda_graph=True)
        assert held == generate(model, PROMPTS, max_new_tokens=40)
        if impl == "gqa_decode=cuda":
            assert last_impl("gqa_decode") == "cuda"
        if dtype == torch.float32:
            assert held == free
            assert generate(base.float(), PROMPTS, max_new_tokens=40) == free, "as on the CPU"
            assert generate(model, PROMPTS, max_new_tokens=40, guesses=5) == free
        else:
            # A tie of rounded logits may fall otherwise in another kernel, and everything behind it with it.
            assert [tokens[:2] for tokens in held] == [tokens[:2] for tokens in free]


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", [None, FP8])
def test_many_requests_in_a_small_pool_on_a_gpu(kv_dtype: torch.dtype | None) -> None:
    model = lively(head_dim=64, num_query_heads=4, num_kv_heads=2, context=256).to("cuda", torch.bfloat16)
    requests = [Request([i % 190, *range(i % 50)], SamplingParams(40, temperature=0.5, seed=i)) for i in range(100)]
    engine = Engine(model, max_sequences=16, kv_tokens=1024, kv_dtype=kv_dtype, guesses=3)
    results = engine.run(requests)
    assert all(len(result.tokens) == 40 for result in results)
    assert engine.free_pages == engine.pages
