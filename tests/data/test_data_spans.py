"""Spans for the device: gathering them gives the batch that rows made on the host give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_oracles import MakeShards, TextOf

from mify.data.batch import PackedBatch
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, plan_window
from mify.data.rows import concatenate, make_rows, padding_rows
from mify.data.spans import PADDING, concatenate_spans, make_spans, padding_spans
from mify.kernels.packing import fim_pack
from mify.tokenizer import Tokenizer

CONTEXT, PAD, SENTINELS, MOST = 256, 1, (2, 3, 4), 17


def same(a: PackedBatch, b: PackedBatch) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "labels", "positions", "cu_seqlens")
    )


@pytest.mark.parametrize("loss", ["all", "middle"])
@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_the_batch_is_that_of_the_rows(
    loss: str,
    impl: str,
    sources: list[str],
    make_shards: MakeShards,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIFY_IMPL", impl)
    config = PlanConfig(CONTEXT, 3, FimConfig(0.6), max_segments=MOST - 1)
    rows, spans, base, buffers = [], [], 0, []
    for name, texts in (("a", sources[:12]), ("b", ["def f():\n    return 1\n" * n for n in range(1, 9)])):
        shards = make_shards([TextOf(text) for text in texts], name, shard_bytes=40_000)
        plan = plan_window(shards, tokenizer, range(shards.num_documents), config, 0, 0)
        bins = list(range(plan.num_bins))[::-1][: plan.num_bins - 1]
        skip = {int(key) for key in shards.document_ids[::5]}
        options = {"context": CONTEXT, "loss": loss, "skip": skip}
        rows.append(make_rows(plan, bins, shards, pad_id=PAD, sentinels=SENTINELS, **options))  # type: ignore[arg-type]
        spans.append(make_spans(plan, bins, shards, base=base, **options))  # type: ignore[arg-type]
        buffers += [np.asarray(tokens) for tokens in shards.tokens]
        base += shards.num_tokens
    dtype = np.dtype("<u2")
    rows.append(padding_rows(2, CONTEXT, PAD, dtype))
    spans.append(padding_spans(2, CONTEXT, dtype))
    expected = concatenate(rows).to_batch(MOST)
    got = concatenate_spans(spans).to_batch(
        torch.from_numpy(np.concatenate(buffers)), context=CONTEXT, pad_id=PAD, max_segments=MOST, sentinels=SENTINELS
    )
    assert same(got, expected)
    assert (got.labels != -100).any()


def test_only_the_patches_of_the_chosen_bins_travel(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    shards = make_shards(sources[:12])
    plan = plan_window(shards, tokenizer, range(12), PlanConfig(CONTEXT, 3, FimConfig(1.0)), 0, 0)
    whole = make_spans(plan, range(plan.num_bins), shards, context=CONTEXT)
    assert sorted(whole.patches.tolist()) == sorted(plan.patches.tolist())
    parts = [make_spans(plan, [number], shards, context=CONTEXT) for number in range(plan.num_bins)]
    assert sum(len(part.patches) for part in parts) == len(plan.patches)
    assert all(part.patches.dtype == np.uint16 for part in parts)


def test_padding_has_one_value_everywhere() -> None:
    assert PADDING == fim_pack.PADDING
