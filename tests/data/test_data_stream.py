"""The stream: the same batches on any ranks, exact resume, the mixture, the ledger, what happens at the end."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_oracles import Piece as AnyPiece
from data_oracles import TextOf, take_apart, text_bytes
from torch.utils.data import DataLoader

from mify.data.batch import PackedBatch
from mify.data.shards import write_shards
from mify.data.stream import FimConfig, Source, TokenStream
from mify.errors import MifyError
from mify.tokenizer import Tokenizer

CONTEXT = 256


@pytest.fixture(scope="module")
def corpus(
    sources: list[str], adversarial: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[TextOf]]:
    parts = [source[i : i + 2500] for source in sources for i in range(0, min(len(source), 9000), 2500)]
    texts = list(dict.fromkeys([*parts, *adversarial]))
    return {
        "code": [TextOf(text) for text in texts],
        "text": [TextOf(text[:900], "text") for text in texts[::4]],
        "math": [TextOf(text[:300], "math") for text in texts[::5]],
    }


@pytest.fixture(scope="module")
def shards(
    corpus: dict[str, list[TextOf]], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stream")
    for name, documents in corpus.items():
        write_shards(documents, tokenizer, folder / name, shard_bytes=100_000)
    return {name: folder / name for name in corpus}


@pytest.fixture
def stream_of(shards: dict[str, Path]):  # type: ignore[no-untyped-def]
    def make(weights: dict[str, float] | None = None, **options: object) -> TokenStream:
        weights = weights or {"code": 78, "text": 12, "math": 10}
        given = {"context": CONTEXT, "rows_per_step": 8, "seed": 3, "fim": FimConfig(0.25), "window_documents": 60}
        return TokenStream([Source(n, shards[n], w) for n, w in weights.items()], **{**given, **options})  # type: ignore[arg-type]

    return make


def same(a: PackedBatch, b: PackedBatch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("tokens", "labels", "positions", "cu_seqlens"))


def take(stream: Iterable[PackedBatch], count: int) -> list[PackedBatch]:
    return list(itertools.islice(stream, count))


def test_batches_are_a_function_of_sources_seed_and_step(stream_of) -> None:  # type: ignore[no-untyped-def]
    first, again, other = (take(stream_of(seed=seed), 12) for seed in (3, 3, 4))
    assert all(itertools.starmap(same, zip(first, again, strict=True)))
    assert not any(itertools.starmap(same, zip(first, other, strict=True)))
    assert {batch.cu_seqlens.numel() for batch in first} == {stream_of().cu_seqlens_length}


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_global_batches_are_the_same_on_any_number_of_ranks(world_size: int, stream_of) -> None:  # type: ignore[no-untyped-def]
    whole = take(stream_of(), 10)
    ranks = [take(stream_of(rank=rank, world_size=world_size), 10) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        for name in ("tokens", "labels", "positions"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        assert sum((part.sources for part in parts), ()) == batch.sources
        size = batch.num_tokens // world_size
        starts = [part.cu_seqlens[part.cu_seqlens < size] + i * size for i, part in enumerate(parts)]
        assert torch.equal(torch.cat(starts), batch.cu_seqlens[batch.cu_seqlens < batch.num_tokens])


def test_the_documents_of_a_batch_are_told_without_moving_the_stream(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of()
    take(stream, 5)
    state = stream.state_dict()
    told = stream.documents_after(state)
    assert stream.state_dict() == state
    batch = take(stream, 1)[0]
    assert [bool(row) for row in told] == [True] * batch.num_rows
    # Those and no others: when they are skipped, that row holds nothing, and what it does not name is still there.
    skipping = stream_of(skip=told[2])
    skipping.load_state_dict(state)
    labels = take(skipping, 1)[0].labels.view(batch.num_rows, -1)
    assert set(labels[2].tolist()) == {-100}
    untouched = [row for row in range(batch.num_rows) if not set(told[row]) & set(told[2])]
    assert untouched
    assert all(torch.equal(labels[row], batch.labels.view_as(labels)[row]) for row in untouched)


def test_threads_do_not_change_a_batch(stream_of) -> None:  # type: ignore[no-untyped-def]
    assert all(itertools.starmap(same, zip(take(stream_of(), 8), take(stream_of(threads=3), 8), strict=True)))


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_processes_do_not_change_a_batch(workers: int, stream_of) -> None:  # type: ignore[no-untyped-def]
    loader = DataLoader(stream_of(), batch_size=None, num_workers=workers)
    assert all(itertools.starmap(same, zip(take(stream_of(), 7), take(loader, 7), strict=True)))


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_gathering_from_resident_tokens_gives_the_same_batches(
    impl: str, corpus: dict[str, list[TextOf]], stream_of, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """With skipped documents, loss on the middle only, and a last batch that is filled up with padding."""
    options = {"skip": [document.id for document in corpus["code"][::9]], "loss": "middle", "exhausted": "reweight"}
    expected = list(stream_of(**options))
    monkeypatch.setenv("MIFY_IMPL", f"fim_pack={impl}")
    got = list(stream_of(**options, resident=True))
    assert len(got) == len(expected) > 10
    assert all(itertools.starmap(same, zip(got, expected, strict=True)))
    assert [batch.sources for batch in got] == [batch.sources for batch in expected]
    assert "" in got[-1].sources


@pytest.mark.parametrize("step", [0, 1, 7, 40])
def test_resume_is_exact_on_other_ranks_too(step: int, stream_of) -> None:  # type: ignore[no-untyped-def]
    """Step 40 lies beyond the first epoch of the small sources."""
    stream = stream_of()
    batches = iter(stream)
    take(batches, step)
    state = json.loads(json.dumps(stream.state_dict()))
    ledger = stream.ledger()
    expected = take(batches, 5)
    resumed = stream_of()
    resumed.load_state_dict(state)
    got = take(resumed, 5)
    assert all(itertools.starmap(same, zip(expected, got, strict=True)))
    half = stream_of(rank=1, world_size=2)
    half.load_state_dict(state)
    for batch, part in zip(expected, take(half, 5), strict=True):
        assert torch.equal(batch.tokens[batch.num_tokens // 2 :], part.tokens)
    fresh = stream_of()
    fresh.load_state_dict(state)
    assert {n: e["tokens"] for n, e in fresh.ledger().items()} == {n: e["tokens"] for n, e in ledger.items()}
    sought = stream_of()
    sought.seek(step)
    assert same(expected[0], next(iter(sought)))
    sought.seek(0)
    assert sought.step == 0


def test_the_state_is_small_whatever_the_step(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of()
    sizes = []
    for _ in take(stream, 30):
        sizes.append(len(json.dumps(stream.state_dict())))
    assert max(sizes) < 1600
    assert max(sizes) - min(sizes) < 40


def test_the_mixture_is_kept_by_tokens(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of()
    for count in (10, 50, 200):
        for _ in itertools.islice(stream, count):
            pass
        ledger = stream.ledger()
        total = sum(entry["tokens"] for entry in ledger.values())
        for name, share in {"code": 0.78, "text": 0.12, "math": 0.10}.items():
            assert abs(ledger[name]["tokens"] - share * total) <= max(0.001 * total, CONTEXT), (name, total)
    assert ledger["math"]["epochs"] > 2


def test_the_ledger_counts_what_the_batches_hold(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of()
    tokens: Counter[str] = Counter()
    for batch in take(stream, 40):
        rows = batch.tokens.view(-1, CONTEXT)
        for name, row in zip(batch.sources, rows, strict=True):
            tokens[name] += int((row != stream.tokenizer.pad_id).sum())
    ledger = stream.ledger()
    assert {name: entry["tokens"] for name, entry in ledger.items()} == dict(tokens)
    assert sum(entry["rows"] for entry in ledger.values()) == 40 * 8
    assert sum(entry["tokens"] + entry["padding"] for entry in ledger.values()) == 40 * 8 * CONTEXT


def segments(batches: Iterable[PackedBatch], pad_id: int) -> Iterator[list[int]]:
    for batch in batches:
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            if start < end and int(batch.tokens[start]) != pad_id:
                yield batch.tokens[start:end].tolist()


def whole_text(ids: list[int], tokenizer: Tokenizer) -> bytes:
    """The text of a plain or permuted segment."""
    if tokenizer.fim_prefix_id not in ids:
        return text_bytes([i for i in ids if i != tokenizer.eot_id], tokenizer)
    if ids[ids.index(tokenizer.fim_prefix_id) + 1] == tokenizer.fim_suffix_id:
        marker = ids.index(tokenizer.fim_middle_id)
        suffix = ids[ids.index(tokenizer.fim_suffix_id) + 1 : marker]
        return text_bytes(ids[marker + 1 : -1] + suffix, tokenizer)
    parts = take_apart(AnyPiece(0, 0, 1, ids.index(tokenizer.fim_middle_id) + 1, 0, ids), tokenizer)
    return text_bytes(parts.prefix + parts.middle + parts.suffix, tokenizer)


def test_an_epoch_holds_every_document_once(corpus: dict[str, list[TextOf]], tokenizer: Tokenizer, stream_of) -> None:  # type: ignore[no-untyped-def]
    """Nothing dropped, nothing twice: the fragments' bytes add up to the corpus'."""
    stream = stream_of(exhausted="reweight", fim=FimConfig(0.5), context=512)
    batches = list(stream)
    assert {batch.num_tokens for batch in batches} == {8 * 512}
    found = Counter(whole_text(ids, tokenizer) for ids in segments(batches, 1))
    whole = {d.text.encode() for documents in corpus.values() for d in documents}
    short = {text for text in whole if len(text) < 400}
    assert short <= set(found)
    assert sum(len(text) * count for text, count in found.items()) == sum(
        len(d.text.encode()) for documents in corpus.values() for d in documents
    )
    assert {entry["epochs"] for entry in stream.ledger().values()} == {1.0}
    assert list(stream) == []


def test_stop_ends_with_the_first_exhausted_source(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of(exhausted="stop")
    steps = len(list(stream))
    ledger = stream.ledger()
    done = [name for name, entry in ledger.items() if entry["epochs"] == 1.0]
    assert len(done) == 1
    assert steps == -(-int(sum(entry["rows"] for entry in ledger.values())) // 8)


def test_reweight_goes_on_until_all_sources_are_used_up(
    corpus: dict[str, list[TextOf]], stream_of, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level("INFO", "mify.data")
    stream = stream_of({"code": 1, "text": 20}, exhausted="reweight")
    batches = list(stream)
    ledger = stream.ledger()
    assert {name: entry["epochs"] for name, entry in ledger.items()} == {"code": 1.0, "text": 1.0}
    assert [r.message.split(":")[0] for r in caplog.records] == ["source text", "source code"]
    assert caplog.records[0].message.endswith("the others go on")
    # While both last, tokens go 20 to 1; behind the end of one the other is alone.
    used_up = int(caplog.records[0].message.split("step ")[1].split(";")[0])
    early = [source for batch in batches[:used_up] for source in batch.sources]
    assert early.count("text") > 10 * early.count("code")
    assert {source for batch in batches[used_up + 1 :] for source in batch.sources} <= {"code", ""}


def test_expected_epochs_are_those_that_come(stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of()
    expected = stream.expected_epochs(60)
    take(stream, 60)
    for name, entry in stream.ledger().items():
        # FIM and padding move it a little.
        assert entry["epochs"] == pytest.approx(expected[name], rel=0.15)


def test_epochs_differ_in_order_and_cuts(tokenizer: Tokenizer, stream_of) -> None:  # type: ignore[no-untyped-def]
    stream = stream_of({"math": 1.0}, fim=FimConfig(0.5, domains=("math",)))
    epochs: list[list[list[int]]] = [[], []]
    for batch in stream:
        epoch = int(stream.ledger()["math"]["epochs"] - 1e-9)
        if epoch > 1:
            break
        epochs[epoch] += segments([batch], 1)
    first, second = ([tuple(ids) for ids in epoch] for epoch in epochs)
    assert first[:20] != second[:20]
    plain = [{ids for ids in epoch if tokenizer.fim_prefix_id not in ids} for epoch in (first, second)]
    assert len(plain[0] & plain[1]) > 5
    assert plain[0] != plain[1]


def test_skipped_documents_are_blanked_and_stay_so_after_resume(corpus: dict[str, list[TextOf]], stream_of) -> None:  # type: ignore[no-untyped-def]
    bad = [document.id for document in corpus["math"][:9]]
    plain, skipping = stream_of({"math": 1.0}), stream_of({"math": 1.0}, skip=bad)
    pairs = list(zip(take(plain, 6), take(skipping, 6), strict=True))
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in pairs)
    assert all(torch.equal(a.cu_seqlens, b.cu_seqlens) for a, b in pairs)
    assert all((b.tokens[a.tokens != b.tokens] == 1).all() for a, b in pairs)
    resumed = stream_of({"math": 1.0})
    resumed.load_state_dict(skipping.state_dict())
    assert resumed.skip == skipping.skip != plain.skip


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"context": 512}, "context"),
        ({"rows_per_step": 4}, "rows_per_step"),
        ({"fim": FimConfig(0.3)}, "fim"),
        ({"fim": None}, "fim"),
        ({"weights": {"code": 1, "text": 12, "math": 10}}, "weights"),
        ({"weights": {"code": 1}}, "sources"),
        ({"window_documents": 61}, "window_documents"),
        ({"exhausted": "stop"}, "exhausted"),
    ],
)
def test_a_state_of_another_stream_is_refused_by_name(change: dict[str, object], name: str, stream_of) -> None:  # type: ignore[no-untyped-def]
    state = stream_of().state_dict()
    with pytest.raises(MifyError, match=f"had {name} ="):
        stream_of(**change).load_state_dict(state)


def test_a_state_of_another_version_is_refused(stream_of) -> None:  # type: ignore[no-untyped-def]
    state = stream_of().state_dict()
    with pytest.raises(MifyError, match="version 9"):
        stream_of().load_state_dict({**state, "version": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {}}, "no sources"),
        ({"weights": {"code": 0}}, "weight 0"),
        ({"weights": {"code": float("nan")}}, "weight nan"),
        ({"rows_per_step": 6, "world_size": 4}, "does not divide over 4 ranks"),
        ({"rows_per_step": 0}, "does not divide"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"context": 16}, "context of 16"),
        ({"exhausted": "explode"}, "'explode'"),
        ({"loss": "some"}, "'some'"),
        ({"seed": -1}, "seed -1"),
        ({"window_documents": 0}, "window_documents"),
        ({"max_segments": 0}, "max_segments"),
    ],
)
def test_a_bad_configuration_is_refused_before_the_first_batch(
    change: dict[str, object], message: str, shards: dict[str, Path]
) -> None:
    options = {"context": CONTEXT, "rows_per_step": 8, "seed": 3, "weights": {"code": 1.0}, **change}
    weights = options.pop("weights")
    with pytest.raises(MifyError, match=message):
        TokenStream([Source(n, shards[n], w) for n, w in weights.items()], **options)  # type: ignore[arg-type]


def test_an_absent_source_is_named(shards: dict[str, Path], tmp_path: Path) -> None:
    sources = [Source("code", shards["code"], 1.0), Source("poetry", tmp_path / "poetry", 1.0)]
    with pytest.raises(MifyError, match=r"'poetry'.*does not exist"):
        TokenStream(sources, context=CONTEXT, rows_per_step=8, seed=1)
    with pytest.raises(MifyError, match="same name"):
        TokenStream([sources[0], sources[0]], context=CONTEXT, rows_per_step=8, seed=1)


def test_shards_of_another_tokenizer_are_refused(shards: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    added = [token for token in tokenizer.definition["added_tokens"] if token["id"] != 127]
    other = Tokenizer({**tokenizer.definition, "added_tokens": added})
    write_shards([TextOf("x = 1\n")], other, tmp_path / "other")
    sources = [Source("code", shards["code"], 1.0), Source("other", tmp_path / "other", 1.0)]
    with pytest.raises(MifyError, match="another tokenizer"):
        TokenStream(sources, context=CONTEXT, rows_per_step=8, seed=1)


@pytest.mark.slow
def test_a_document_of_a_hundred_million_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = "value = other_value + 1\n"
    count = 10**8 // len(tokenizer.encode(line)) + 1
    write_shards([TextOf(line * count)], tokenizer, tmp_path / "long")
    stream = TokenStream(
        [Source("long", tmp_path / "long", 1.0)],
        context=8192,
        rows_per_step=16,
        seed=1,
        fim=FimConfig(0.25),
        exhausted="reweight",
    )
    first = next(iter(stream))
    assert first.num_tokens == 16 * 8192
    counts = stream.counts
    assert counts.source_tokens >= 10**8
    assert counts.padding / (counts.bins * 8192) < 0.001
    assert np.isclose((counts.psm + counts.spm) / counts.fragments, 0.25, atol=0.02)
