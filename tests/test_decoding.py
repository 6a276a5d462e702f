"""The cache and the decode step that a CUDA graph holds: without a GPU its replay is played, with one it is real."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_generate import PROMPTS, lively
from torch import Tensor

from mify import decoding
from mify.decoding import DecodeStep, KVCache
from mify.errors import MifyError
from mify.generate import generate
from mify.kernels import last_impl
from mify.model import Model


def played(run: Callable[[], Tensor], restore: Callable[[], object]) -> Callable[[], Tensor]:
    """As `decoding.captured`, with what it demands of a step: nothing that it holds may move from replay to replay."""
    step: DecodeStep = run.__self__  # type: ignore[attr-defined]
    for _ in range(3):
        run()
        restore()
    out = run()
    restore()

    def addresses() -> list[int]:
        cache = step._cache
        held = (cache.keys, cache.values, cache.lengths, cache.columns, cache.rows, step._tokens, step._bounds)
        return [x.data_ptr() for x in held]

    before = addresses()

    def replay() -> Tensor:
        assert addresses() == before
        out.copy_(run())
        assert addresses() == before
        return out

    return replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "captured", played)
    monkeypatch.setattr("mify.generate._as_graph", lambda wish, device, steps: bool(wish))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_captured_step_gives_the_same_tokens(temperature: float) -> None:
    model = lively()
    options = {"max_new_tokens": 25, "temperature": temperature, "seed": 3}
    free = generate(model, PROMPTS, **options)  # type: ignore[arg-type]
    assert generate(model, PROMPTS, cuda_graph=True, **options) == free  # type: ignore[arg-type]
    # Sequences that end at different steps, so that rows go on unheeded and the step is captured again.
    ends = [free[0][2], free[1][9], free[2][15]]
    expected = generate(model, PROMPTS, stop_ids=ends, **options)  # type: ignore[arg-type]
    assert len({len(tokens) for tokens in expected}) > 2
    assert generate(model, PROMPTS, stop_ids=ends, cuda_graph=True, **options) == expected  # type: ignore[arg-type]


@pytest.mark.usefixtures("graphs")
def test_a_row_that_goes_on_unheeded_stays_inside_the_cache() -> None:
    model = lively()
    context = model.config.context
    prompts = [[1] * (context - 3), [1, 2], [3], [4, 4]]
    expected = generate(model, prompts, max_new_tokens=30)
    assert len(expected[0]) == 3
    assert generate(model, prompts, max_new_tokens=30, cuda_graph=True) == expected


def test_a_full_sequence_overwrites_its_last_token_only() -> None:
    model = lively()
    cache = KVCache(model, 2, 6)
    cache.write_prompts([6, 2])
    cache.begin_decoding()
    for expected in ([5, 2], [5, 3], [5, 4], [5, 5], [5, 5]):
        cache.write_next()
        assert cache.columns.tolist() == expected
    assert cache.lengths.tolist() == [6, 6]


def test_a_graph_needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(MifyError, match="cuda_graph asks for a GPU"):
            generate(lively(), [[1]], cuda_graph=True)


@pytest.mark.parametrize("impl", ["auto", "ref"])
def test_a_decode_step_compiles_in_one_graph(impl: str) -> None:
    model = lively()
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = impl
    cache = KVCache(model, 3, 9)
    lengths = [4, 1, 2]
    cache.write_prompts(lengths)
    tokens = torch.arange(7)
    bounds = torch.tensor([0, 4, 5, 7], dtype=torch.int32)
    graphs = 0

    def count(graph, inputs):  # type: ignore[no-untyped-def]
        nonlocal graphs
        graphs += 1
        return graph.forward

    with torch.no_grad():
        model(tokens, cache.columns, bounds, 4, cache)
        kept = cache.keys.clone(), cache.values.clone(), cache.lengths.clone()
        results = []
        for compiled in (False, True):
            cache.keys, cache.values, cache.lengths = (x.clone() for x in kept)
            step = DecodeStep(model, cache, graph=False)
            if compiled:
                torch._dynamo.reset()
                step._step = torch.compile(step._run, backend=count, fullgraph=True, dynamic=False)
            results.append([step(torch.tensor(new)).clone() for new in ([1, 2, 3], [3, 2, 1], [9, 9, 9])])
    assert graphs == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert cache.lengths.tolist() == [7, 4, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["auto", "triton", "gqa_decode=cuda", "ref"])
def test_a_captured_step_on_a_gpu(impl: str) -> None:
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
        else:
            # A tie of rounded logits may fall otherwise in another kernel, and everything behind it with it.
            assert [tokens[:2] for tokens in held] == [tokens[:2] for tokens in free]
