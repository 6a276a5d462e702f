"""torch.compile of the whole model in one graph: the same loss and gradients as without it."""

from __future__ import annotations

import pytest
import torch

from mify.config import model_config
from mify.data.batch import PackedBatch
from mify.model import Model
from mify.testing import cu_seqlens_of


def batch(lengths: list[int], seed: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    labels = torch.randint(0, 99, (total,), generator=generator)
    labels[::4] = -100
    return PackedBatch(
        tokens=torch.randint(0, 99, (total,), generator=generator),
        labels=labels,
        positions=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=cu_seqlens_of(lengths, padding=8 - len(lengths)),
        max_seqlen=64,
    )


@pytest.mark.parametrize("impl", ["auto", "sdpa", "ref"])
def test_fullgraph_equals_eager_and_does_not_recompile(impl: str) -> None:
    config = model_config("mify-tiny", num_layers=2, hidden_size=32, head_dim=8, ffn_size=48, vocab_size=99, context=64)
    model = Model(config, impl=impl)
    graphs = 0

    def count(graph, inputs):  # type: ignore[no-untyped-def]
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model.loss, backend=count, fullgraph=True, dynamic=False)
    for lengths in ([40, 24], [1, 30, 33], [64]):
        one = batch(lengths, seed=len(lengths))
        results = []
        for function in (model.loss, compiled):
            model.zero_grad()
            loss, labelled = function(one)
            (loss / labelled).backward()
            results.append([loss.detach(), labelled, *(p.grad.clone() for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    assert graphs == 1


@pytest.mark.slow
def test_inductor() -> None:
    config = model_config("mify-tiny", num_layers=1, hidden_size=32, head_dim=8, ffn_size=48, vocab_size=99, context=64)
    model = Model(config)
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, fullgraph=True)
    one = batch([40, 24], seed=0)
    try:
        loss, _ = compiled(one)
    except Exception as error:
        if "compiler" in str(error).lower():
            pytest.skip(f"inductor needs a C++ compiler: {error}")
        raise
    loss.backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected, _ = model.loss(one)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for a, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-5)
