"""Attention in Triton against plain torch, by the rule; and the whole model on Triton's backends."""

from __future__ import annotations

import itertools

import pytest
import torch

from mify.config import model_config
from mify.kernels import gqa_attention, last_impl
from mify.kernels.attention import gqa_ref
from mify.model import Model
from mify.testing import compare, cu_seqlens_of, layouts


def reference(bounds: list[int], causal: bool, window: int):  # type: ignore[no-untyped-def]
    """Plain torch, differentiated by autograd."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        parts = []
        for start, end in itertools.pairwise(bounds):
            mask = gqa_ref.visible(end - start, causal, window, q.device)
            qs, ks, vs = (x[start:end].transpose(0, 1) for x in (q, k, v))
            scores = qs @ ks.repeat_interleave(group, 0).transpose(1, 2) * q.shape[2] ** -0.5
            weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
            parts.append((weights @ vs.repeat_interleave(group, 0)).transpose(0, 1))
        return torch.cat(parts)

    return attention


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim", "causal", "window"),
    [
        ([150, 0, 1, 33, 76], 4, 2, 64, True, 0),
        ([100, 0, 90], 2, 1, 128, False, 0),
        ([170, 60], 2, 2, 16, True, 40),
        ([90, 70], 3, 1, 40, False, 17),
    ],
)
def test_forward_and_backward(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    causal: bool,
    window: int,
    deterministic: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    cu = cu_seqlens_of(lengths, padding=2, device=device)
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, h, dim, device=device).to(dtype) for h in (heads, kv_heads, kv_heads))
    compare(
        lambda q, k, v: gqa_attention(
            q, k, v, cu, 256, causal=causal, window=window, deterministic=deterministic, impl="triton"
        ),
        reference(cu.tolist(), causal, window),
        (q, k, v),
    )


def test_any_layout(device: str) -> None:
    cu = cu_seqlens_of([40, 23], device=device)
    q, k, v = (torch.randn(63, h, 16, device=device) for h in (2, 1, 1))
    expected = reference(cu.tolist(), True, 0)(q, k, v)
    for (name, q2), (_, k2), (_, v2) in zip(layouts(q), layouts(k), list(layouts(v))[::-1], strict=True):
        torch.testing.assert_close(gqa_attention(q2, k2, v2, cu, 64, impl="triton"), expected, msg=name)


def test_the_whole_model_on_triton(device: str) -> None:
    config = model_config(
        "mify-tiny", num_layers=1, hidden_size=32, head_dim=16, ffn_size=48, vocab_size=99, context=64
    )
    results = []
    for impl in ("triton", "ref"):
        model = Model(config, impl=impl).to(device)
        batch = _batch(device)
        loss, count = model.loss(batch)
        (loss / count).backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert {last_impl(op) for op in ("gqa", "norm", "rope", "glu", "linear_ce")} == {impl}
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _batch(device: str):  # type: ignore[no-untyped-def]
    from mify.data.batch import PackedBatch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 99, (64,), generator=generator)
    labels = torch.randint(0, 99, (64,), generator=generator)
    positions = torch.cat([torch.arange(40), torch.arange(24)])
    return PackedBatch(tokens, labels, positions, cu_seqlens_of([40, 24], padding=1), 64).to(device)
