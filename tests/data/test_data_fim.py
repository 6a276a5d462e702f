"""FIM against full re-tokenization, the inverse permutation, and the readable twin."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from data_oracles import MakeShards, Piece, TextOf, pieces_of, take_apart, text_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, WindowPlan, plan_window
from mify.data.plan_ref import plan_window_ref
from mify.data.shards import TokenShards
from mify.errors import MifyError
from mify.tokenizer import Tokenizer

CONTEXT = 4096


def plan_all(shards: TokenShards, tokenizer: Tokenizer, epoch: int = 0, seed: int = 1, **fim: object) -> WindowPlan:
    config = PlanConfig(CONTEXT, seed, FimConfig(**{"rate": 1.0, **fim}))  # type: ignore[arg-type]
    return plan_window(shards, tokenizer, range(shards.num_documents), config, epoch, 0)


def check_piece(piece: Piece, text: str, tokenizer: Tokenizer, encode: Callable[[str], list[int]]) -> None:
    """The pieces' ids are those of encoding the pieces, and the document comes back."""
    parts = take_apart(piece, tokenizer)
    texts = [text_bytes(ids, tokenizer).decode() for ids in (parts.prefix, parts.middle, parts.suffix)]
    assert "".join(texts) == text
    for ids, part in zip((parts.prefix, parts.middle, parts.suffix), texts, strict=True):
        assert ids == encode(part), (part, text)


def test_adversarial_cuts_equal_full_tokenization(
    adversarial: list[str],
    make_shards: MakeShards,
    tokenizer: Tokenizer,
    encode_slowly: Callable[[str], list[int]],
) -> None:
    shards, done = make_shards(adversarial), 0
    for epoch in range(150):
        for piece in pieces_of(plan_all(shards, tokenizer, epoch), shards):
            check_piece(piece, adversarial[piece.document], tokenizer, encode_slowly)
            done += 1
    assert done == 150 * len(adversarial)


def test_ten_thousand_random_cuts_equal_full_tokenization(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    """Real code, at 2 cuts a document; the fast encoder is the oracle, which test_tokenizer holds to the slow one."""
    rng = random.Random(0)
    texts = []
    for source in sources[40:]:
        for _ in range(17):
            start = rng.randrange(len(source))
            texts.append(source[start : start + rng.randrange(1, 600)])
    texts = list(dict.fromkeys(texts))
    shards, done = make_shards(texts), 0
    for epoch in range(10):
        plan = plan_all(shards, tokenizer, epoch)
        for piece in pieces_of(plan, shards):
            check_piece(piece, texts[piece.document], tokenizer, tokenizer.encode)
            done += 2
    assert done >= 10_000


@pytest.mark.slow
def test_a_million_random_cuts_equal_full_tokenization(
    sources: list[str], adversarial: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    rng = random.Random(1)
    texts = list(adversarial)
    while len(texts) < 5000:
        source = rng.choice(sources)
        start = rng.randrange(len(source))
        texts.append(source[start : start + rng.randrange(1, 2000)])
    texts = list(dict.fromkeys(texts))
    shards = make_shards(texts)
    done = 0
    for epoch in range(10**6 // (2 * len(texts)) + 1):
        pieces = pieces_of(plan_all(shards, tokenizer, epoch), shards)
        apart = [take_apart(piece, tokenizer) for piece in pieces]
        parts = [ids for p in apart for ids in (p.prefix, p.middle, p.suffix)]
        whole = [text_bytes(ids, tokenizer).decode() for ids in parts]
        ids, offsets = tokenizer.encode_arrays(whole)
        assert np.array_equal(offsets, np.cumsum([0, *map(len, parts)]))
        assert np.array_equal(ids, np.fromiter(itertools.chain.from_iterable(parts), np.uint32))
        for number, piece in enumerate(pieces):
            assert "".join(whole[3 * number : 3 * number + 3]) == texts[piece.document]
        done += 2 * len(pieces)
    assert done >= 10**6


LETTERS = st.sampled_from(list("abés'SltrevmdD \n\r\t_#=(){}<|>129中🙂\u00a0\u3000\u0301ſ\x0b\x85\u2028"))
TEXTS = st.lists(st.text(LETTERS, min_size=1, max_size=60), min_size=1, max_size=8, unique=True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, seed=st.integers(0, 2**64 - 1), line=st.booleans())
def test_any_document_comes_back(
    texts: list[str],
    seed: int,
    line: bool,
    make_shards: MakeShards,
    tokenizer: Tokenizer,
    encode_slowly: Callable[[str], list[int]],
) -> None:
    shards = make_shards(texts)
    plan = plan_all(shards, tokenizer, seed=seed, span="line" if line else "uniform")
    seen = set()
    for piece in pieces_of(plan, shards):
        check_piece(piece, texts[piece.document], tokenizer, encode_slowly)
        seen.add(piece.document)
    assert seen == set(range(len(texts)))


@pytest.mark.parametrize("span", ["uniform", "line", "syntax"])
@pytest.mark.parametrize("context", [64, 512])
def test_the_plan_equals_its_readable_twin(
    context: int,
    span: str,
    adversarial: list[str],
    sources: list[str],
    make_shards: MakeShards,
    tokenizer: Tokenizer,
) -> None:
    texts = [*adversarial, *(source[:3000] for source in sources[40:50]), "=" * 9000 + "\n", "é" * 2000]
    prose = [TextOf(text, "text") for text in texts[:9]]
    shards = make_shards([*texts, *prose], shard_bytes=6000, syntax=span == "syntax")
    assert len(shards.tokens) > 2
    config = PlanConfig(context, 3, FimConfig(0.6, 0.4, ("code",), span))  # type: ignore[arg-type]
    for epoch in range(2):
        ours = plan_window(shards, tokenizer, range(shards.num_documents), config, epoch, 5)
        twin = plan_window_ref(shards, tokenizer, range(shards.num_documents), config, epoch, 5)
        threads = plan_window(shards, tokenizer, range(shards.num_documents), config, epoch, 5, threads=3)
        for field in dataclasses.fields(WindowPlan):
            expected = getattr(twin, field.name)
            for plan in (ours, threads):
                got = getattr(plan, field.name)
                assert np.array_equal(got, expected) if isinstance(got, np.ndarray) else got == expected, field.name
        assert ours.counts.psm + ours.counts.spm > 0
        assert ours.counts.plain_no_boundary > 0


def test_overlong_documents_are_fragmented_and_nothing_is_dropped(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    texts = sources[40:50]
    shards = make_shards(texts)
    config = PlanConfig(256, 1, FimConfig(rate=0.5))
    plan = plan_window(shards, tokenizer, range(len(texts)), config, 0, 0)
    assert plan.counts.fragments > 100
    assert (plan.bin_tokens() <= 256).all()
    by_document: dict[int, list[bytes]] = {}
    endings = []
    for piece in sorted(pieces_of(plan, shards), key=lambda p: (p.document, p.fragment)):
        if piece.mode:
            parts = take_apart(piece, tokenizer)
            body = parts.head + parts.prefix + parts.middle + parts.suffix
            assert [i for part in (parts.prefix, parts.middle, parts.suffix) for i in tokenizer.encode(
                text_bytes(part, tokenizer).decode())] == parts.prefix + parts.middle + parts.suffix  # fmt: skip
        else:
            body = piece.ids[:-1] if piece.ids[-1] == tokenizer.eot_id else piece.ids
        by_document.setdefault(piece.document, []).append(text_bytes(body, tokenizer))
        endings.append(piece.ids[-1] == tokenizer.eot_id)
    assert {d: b"".join(parts).decode() for d, parts in by_document.items()} == dict(enumerate(texts))
    assert endings.count(True) >= plan.counts.psm + plan.counts.spm


def test_every_document_and_every_middle_ends_in_end_of_text(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    shards = make_shards([source[:500] for source in sources])
    plan = plan_all(shards, tokenizer, rate=0.5)
    assert all(piece.ids[-1] == tokenizer.eot_id for piece in pieces_of(plan, shards))
    assert all(piece.ids.count(tokenizer.eot_id) == 1 for piece in pieces_of(plan, shards))


def test_decisions_nest_in_the_rate_and_keep_their_cuts(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    shards = make_shards([source[:400] for source in sources])
    chosen: list[dict[int, list[int]]] = []
    for rate in (0.0, 0.15, 0.25, 0.3, 1.0):
        pieces = pieces_of(plan_all(shards, tokenizer, rate=rate), shards)
        chosen.append({piece.document: piece.ids for piece in pieces if piece.mode})
    assert not chosen[0]
    assert len(chosen[-1]) == shards.num_documents
    for fewer, more in itertools.pairwise(chosen):
        assert fewer.items() <= more.items()
    again = {p.document: p.ids for p in pieces_of(plan_all(shards, tokenizer, epoch=1), shards)}
    assert sum(again[d] == ids for d, ids in chosen[-1].items()) < 5  # redrawn every epoch


def test_a_decision_depends_on_the_document_alone(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    texts = [source[:400] for source in sources]
    there, here = make_shards(texts), make_shards(list(reversed(texts))[:30], "other")
    by_id = []
    for shards in (there, here):
        pieces = pieces_of(plan_all(shards, tokenizer, rate=0.5), shards)
        by_id.append({int(shards.document_ids[piece.document]): piece.ids for piece in pieces})
    assert by_id[1].items() <= by_id[0].items()


def test_rates_are_realised(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards([f"x = {i}\n" for i in range(4000)])
    counts = plan_all(shards, tokenizer, rate=0.25, spm_rate=0.5).counts
    assert abs((counts.psm + counts.spm) / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert abs(counts.spm / (counts.psm + counts.spm) - 0.5) < 0.07
    for spm_rate, expected in ((0.0, 0), (1.0, 4000)):
        assert plan_all(shards, tokenizer, spm_rate=spm_rate).counts.spm == expected


def test_only_the_chosen_domains_are_permuted(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards([TextOf(f"{i} words", ("code", "text", "math")[i % 3]) for i in range(30)])
    modes = {piece.document % 3: piece.mode for piece in pieces_of(plan_all(shards, tokenizer), shards)}
    assert modes[0] > 0
    assert modes[1] == modes[2] == 0
    assert plan_all(shards, tokenizer, domains=("math", "text")).counts.psm > 0


def test_line_cuts_fall_on_line_starts(sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards([source[:900] for source in sources])
    for piece in pieces_of(plan_all(shards, tokenizer, span="line"), shards):
        parts = take_apart(piece, tokenizer)
        for before in (parts.prefix, parts.prefix + parts.middle):
            text = text_bytes(before, tokenizer)
            assert text in (b"",) or text.endswith(b"\n") or len(before) == len(parts.prefix + parts.middle)


def test_a_cut_is_uniform_over_characters(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    text = "value = other_value\n"
    shards = make_shards([text])
    places = np.zeros(len(text) + 1)
    for epoch in range(3000):
        (piece,) = pieces_of(plan_all(shards, tokenizer, epoch), shards)
        parts = take_apart(piece, tokenizer)
        first = len(text_bytes(parts.prefix, tokenizer))
        places[first] += 1
        places[first + len(text_bytes(parts.middle, tokenizer))] += 1
    expected = 6000 / len(places)
    assert (((places - expected) ** 2 / expected).sum()) < 50  # chi-square, 20 degrees of freedom: p < 0.0003


def test_a_language_separator_stays_in_front(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards(["def f():\n    return 1\n"], language_separators=True)
    (piece,) = pieces_of(plan_all(shards, tokenizer), shards)
    assert piece.ids[:2] == [tokenizer.special["<|lang:python|>"], tokenizer.fim_prefix_id]
    assert take_apart(piece, tokenizer).head == [tokenizer.special["<|lang:python|>"]]


def test_a_fragment_without_room_stays_plain_and_is_counted(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards(["7" * 62])  # 62 digits and end-of-text: 63 tokens, 67 permuted
    config = PlanConfig(64, 1, FimConfig(rate=1.0))
    plan = plan_window(shards, tokenizer, [0], config, 0, 0)
    assert plan.counts.plain_no_room == 1
    (piece,) = pieces_of(plan, shards)
    assert piece.mode == 0
    assert piece.ids == shards.document(0).tolist()


@pytest.mark.parametrize(("field", "value"), [("rate", 1.1), ("rate", -0.1), ("spm_rate", 2.0), ("span", "words")])
def test_a_bad_configuration_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(MifyError, match=field):
        FimConfig(**{field: value})  # type: ignore[arg-type]


def test_a_context_shorter_than_the_sentinels_is_refused() -> None:
    with pytest.raises(MifyError, match="context of 8"):
        PlanConfig(8, 0)


def test_a_vocabulary_without_fim_tokens_is_refused(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards(["x = 1\n"])
    kept = [token for token in tokenizer.definition["added_tokens"] if "fim" not in token["content"]]
    bare = Tokenizer({**tokenizer.definition, "added_tokens": kept})
    with pytest.raises(MifyError, match="no FIM tokens"):
        plan_all(shards, bare)
    assert plan_all(shards, bare, rate=0.0).counts.tokens == shards.num_tokens


def test_another_pre_tokenizer_is_refused(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards(["x = 1\n"])
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    with pytest.raises(MifyError, match="pre-tokenizer"):
        plan_all(shards, Tokenizer({**tokenizer.definition, "pre_tokenizer": level}))


def test_a_damaged_shard_of_no_text_is_refused(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    """Shards of over a gigabyte are not hashed when they are opened: what the plan meets must not lead it astray."""
    shards = make_shards(["x = 1\n" * 40])
    tokens = np.full(shards.num_tokens, tokenizer.token_bytes.index(b"="), np.uint16)
    tokens[:20] = tokenizer.token_bytes.index(b"\x80")  # no character begins with it
    shards.tokens[0] = tokens
    config = PlanConfig(512, 1, FimConfig(1.0))
    with pytest.raises(MifyError, match="no UTF-8"):
        for epoch in range(20):
            plan_window(shards, tokenizer, [0], config, epoch, 0)
