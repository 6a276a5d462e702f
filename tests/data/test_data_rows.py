"""Rows and batches: the twin, labels, the loss choice, padding, skipped documents."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from data_oracles import MakeShards, TextOf, pieces_of

from mify._core import packing
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, WindowPlan, plan_window
from mify.data.rows import PackedRows, concatenate, make_rows, padding_rows
from mify.data.rows_ref import make_rows_ref
from mify.data.shards import TokenShards
from mify.tokenizer import Tokenizer

CONTEXT = 200
SENTINELS = (2, 3, 4)


@pytest.fixture
def planned(
    sources: list[str], adversarial: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> tuple[WindowPlan, TokenShards]:
    texts = [*adversarial, *(source[:700] for source in sources)]
    shards = make_shards([TextOf(t, "text" if i % 4 == 0 else "code") for i, t in enumerate(texts)], shard_bytes=9000)
    config = PlanConfig(CONTEXT, 5, FimConfig(rate=0.5))
    return plan_window(shards, tokenizer, range(shards.num_documents), config, 0, 0), shards


def rows_of(planned: tuple[WindowPlan, TokenShards], **options: object) -> PackedRows:
    plan, shards = planned
    given = {"context": CONTEXT, "pad_id": 1, "sentinels": SENTINELS, **options}
    return make_rows(plan, range(plan.num_bins), shards, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["all", "middle"])
def test_rows_equal_their_readable_twin(planned: tuple[WindowPlan, TokenShards], loss: str) -> None:
    plan, shards = planned
    bins = np.random.default_rng(0).permutation(plan.num_bins)
    skip = shards.document_ids[3:6].tolist()
    options = {"context": CONTEXT, "pad_id": 1, "sentinels": SENTINELS, "loss": loss, "skip": skip}
    twin = make_rows_ref(plan, bins, shards, **options)  # type: ignore[arg-type]
    for threads in (1, 3):
        rows = make_rows(plan, bins, shards, threads=threads, **options)  # type: ignore[arg-type]
        for field in dataclasses.fields(PackedRows):
            got, expected = getattr(rows, field.name), getattr(twin, field.name)
            assert got.dtype == expected.dtype, field.name
            assert np.array_equal(got, expected), field.name


def test_a_batch_holds_the_pieces_and_nothing_else(
    planned: tuple[WindowPlan, TokenShards], tokenizer: Tokenizer
) -> None:
    plan, shards = planned
    batch = rows_of(planned).to_batch(17)
    assert {t.dtype for t in (batch.tokens, batch.labels, batch.positions)} == {torch.int64}
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.numel() == plan.num_bins * 17 + 1
    assert batch.max_seqlen == CONTEXT
    pieces = iter(pieces_of(plan, shards))
    seen = 0
    for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        if start == end:
            continue
        ids, labels = batch.tokens[start:end].tolist(), batch.labels[start:end].tolist()
        assert batch.positions[start:end].tolist() == list(range(end - start))
        assert start // CONTEXT == (end - 1) // CONTEXT
        if ids == [tokenizer.pad_id] * len(ids):
            assert labels == [-100] * len(ids)
            continue
        piece = next(pieces)
        seen += 1
        assert ids == piece.ids
        assert start // CONTEXT == piece.bin
        targets = [-100 if i in SENTINELS else i for i in ids[1:]]
        assert labels == [*targets, -100]
    assert seen == len(plan.piece_mode)
    assert batch.num_labels == int((batch.labels != -100).sum())


def test_loss_on_the_middle_only(planned: tuple[WindowPlan, TokenShards], tokenizer: Tokenizer) -> None:
    plan, shards = planned
    batch = rows_of(planned, loss="middle").to_batch(17)
    bounds = [(a, b) for a, b in itertools.pairwise(batch.cu_seqlens.tolist()) if a < b]
    bounds = [(a, b) for a, b in bounds if batch.tokens[a] != tokenizer.pad_id]
    modes = set()
    for (start, end), piece in zip(bounds, pieces_of(plan, shards), strict=True):
        labels = batch.labels[start:end].tolist()
        modes.add(piece.mode)
        first = piece.middle if piece.mode else 1
        assert labels[: first - 1] == [-100] * (first - 1)
        assert labels[first - 1 :] == [*piece.ids[first:], -100]
        if piece.mode:
            assert labels[-2] == tokenizer.eot_id
    assert modes == {0, 1, 2}


def test_a_skipped_document_becomes_padding_and_all_else_stays(planned: tuple[WindowPlan, TokenShards]) -> None:
    plan, shards = planned
    bad = int(plan.piece_document[len(plan.piece_document) // 2])
    before, after = rows_of(planned), rows_of(planned, skip=[int(shards.document_ids[bad])])
    assert np.array_equal(before.segment_starts, after.segment_starts)
    changed = before.tokens != after.tokens
    assert changed.any()
    assert (after.tokens[changed] == 1).all()
    plain, blanked = before.to_batch(17), after.to_batch(17)
    different = plain.labels != blanked.labels
    assert (blanked.labels[different] == -100).all()
    assert int((plain.tokens != blanked.tokens).sum()) <= int(shards.offsets[bad + 1] - shards.offsets[bad]) + 8


def test_parts_are_laid_end_to_end(planned: tuple[WindowPlan, TokenShards]) -> None:
    plan, shards = planned
    options = {"context": CONTEXT, "pad_id": 1, "sentinels": SENTINELS}
    parts = [make_rows(plan, [number], shards, **options) for number in range(plan.num_bins)]  # type: ignore[arg-type]
    whole, joined = rows_of(planned), concatenate(parts)
    for field in dataclasses.fields(PackedRows):
        assert np.array_equal(getattr(whole, field.name), getattr(joined, field.name)), field.name


def test_rows_of_padding_carry_no_loss() -> None:
    batch = padding_rows(3, 64, 1, np.dtype(np.uint16)).to_batch(5)
    assert (batch.tokens == 1).all()
    assert batch.num_labels == 0
    assert batch.cu_seqlens.tolist() == [0, 64, 128] + [192] * 13


def test_a_batch_splits_into_micro_batches(planned: tuple[WindowPlan, TokenShards]) -> None:
    plan, shards = planned
    rows = make_rows(plan, range(8), shards, context=CONTEXT, pad_id=1, sentinels=SENTINELS)
    batch = rows.to_batch(17, [f"row {i}" for i in range(8)])
    for parts in (1, 2, 4, 8):
        split = batch.split(parts)
        for name in ("tokens", "labels", "positions"):
            assert torch.equal(torch.cat([getattr(part, name) for part in split]), getattr(batch, name))
        starts = [
            part.cu_seqlens[part.cu_seqlens < part.num_tokens] + i * 8 // parts * CONTEXT
            for i, part in enumerate(split)
        ]
        assert torch.equal(torch.cat(starts), batch.cu_seqlens[batch.cu_seqlens < batch.num_tokens])
        assert {part.cu_seqlens.numel() for part in split} == {8 // parts * 17 + 1}
        assert sum((part.sources for part in split), ()) == batch.sources
    with pytest.raises(ValueError, match="8 rows do not split into 3"):
        batch.split(3)


def test_the_core_refuses_a_plan_that_does_not_fit(planned: tuple[WindowPlan, TokenShards]) -> None:
    plan, shards = planned
    names = (
        "bin_starts",
        "piece_document",
        "span_starts",
        "span_source",
        "piece_mode",
        "piece_middle",
        "span_length",
        "patches",
    )
    arrays = {name: getattr(plan, name) for name in names}

    def call(bins: list[int], context: int = CONTEXT, **changed: object) -> None:
        packing.make_rows(  # type: ignore[call-overload]
            shards.native,
            **{**arrays, **changed},
            bins=np.array(bins),
            context=context,
            pad_id=1,
            sentinels=[],
            middle_only=False,
            skip=np.zeros(0, np.uint64),
        )

    call([0])
    with pytest.raises(ValueError, match="not below the number of bins"):
        call([plan.num_bins])
    with pytest.raises(ValueError, match="more than the context"):
        call([0], context=20)
    with pytest.raises(ValueError, match="do not fit"):
        call([0], piece_mode=plan.piece_mode[:-1])
    with pytest.raises(ValueError, match="beyond the shards"):
        call([0], span_source=np.full_like(plan.span_source, shards.num_tokens))
    with pytest.raises(ValueError, match="beyond the shards"):
        call([0], piece_document=np.full_like(plan.piece_document, shards.num_documents))
