"""The engine against single greedy continuations: whatever runs beside a request, it gets the same tokens."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from test_generate import PROMPTS, lively

from mify.engine import Engine, Event, Request, Result, SamplingParams, TextPieces
from mify.engine.cache import FP8
from mify.engine.pages import Pages
from mify.errors import MifyError
from mify.model import Model
from mify.tokenizer import train_tokenizer

NEW = 30
SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_sequences": 1},
    {"max_sequences": 3, "step_tokens": 3},  # a prompt in pieces of a token or two
    {"kv_tokens": 64},  # four pages: who came last gives way
    {"guesses": 6},
    {"guesses": 3, "kv_tokens": 64, "max_sequences": 3, "step_tokens": 5},
    {"page_size": 32, "guesses": 15},
]


def greedy(**changes: Any) -> Request:
    return Request(changes.pop("ids", PROMPTS[0]), SamplingParams(NEW, **changes))


def plain(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, every one from the whole text anew."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
            hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), bounds, len(tokens))
            tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
def test_a_ragged_batch_equals_its_requests_one_by_one(settings: dict[str, Any]) -> None:
    model = lively()
    engine = Engine(model, **settings)
    prompts = [*PROMPTS, [7] * 20, PROMPTS[0], [5, 5, 5, 5]]
    results = engine.run([greedy(ids=prompt) for prompt in prompts])
    assert [result.tokens for result in results] == [plain(model, prompt, NEW) for prompt in prompts]
    assert {result.finish_reason for result in results} == {"length"}
    assert engine.free_pages == engine.pages, "all pages came back"
    if settings == {"kv_tokens": 64}:
        assert engine.preemptions > 0


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=lambda s: "-".join(s))
def test_what_is_drawn_does_not_depend_on_the_company(settings: dict[str, Any]) -> None:
    model = lively()
    hows = [
        SamplingParams(NEW, temperature=1.2, seed=5),
        SamplingParams(NEW, temperature=0.7, seed=1 << 63, top_k=20),
        SamplingParams(NEW, temperature=1.0, seed=6, top_p=0.8, min_p=0.02),
        SamplingParams(NEW),
        SamplingParams(NEW, temperature=1.2, seed=5),
    ]
    requests = [Request(prompt, how) for prompt, how in zip([*PROMPTS, PROMPTS[0]], hows, strict=True)]
    alone = [Engine(model).run([request])[0].tokens for request in requests]
    together = [result.tokens for result in Engine(model, **settings).run(requests)]
    assert together == alone
    assert alone[0] == alone[4]
    other = Request(PROMPTS[0], SamplingParams(NEW, temperature=1.2, seed=7))
    assert Engine(model).run([other])[0].tokens != alone[0]


@pytest.mark.parametrize("scaled", [False, True])
def test_an_fp8_cache_gives_the_same_in_any_pieces(scaled: bool) -> None:
    """Every token sees keys and values as they are stored, also those of its own pass."""
    model = lively()
    config = model.config
    scales = None
    if scaled:
        scales = torch.rand(2, config.num_layers, config.num_kv_heads, generator=torch.Generator().manual_seed(1)) + 0.2
    requests = [greedy(ids=prompt) for prompt in [*PROMPTS, [i % 190 for i in range(33)]]]
    default = [result.tokens for result in Engine(model, kv_dtype=FP8, kv_scales=scales).run(requests)]
    for settings in SETTINGS[1:]:
        engine = Engine(model, kv_dtype=FP8, kv_scales=scales, **settings)
        assert [result.tokens for result in engine.run(requests)] == default
    assert default != [plain(model, list(request.ids), NEW) for request in requests], "eight bits show somewhere"


def test_requests_come_and_go_at_any_time() -> None:
    """Submissions, cancellations and readers in a random order, in a pool that is too small for all."""
    model = lively()
    chance = random.Random(3)
    left = 0
    for _ in range(3):
        engine = Engine(model, kv_tokens=160, max_sequences=5, step_tokens=9, guesses=2)
        streams, gone = [], set()
        while len(streams) < 16 or engine.busy:
            if len(streams) < 16 and chance.random() < 0.4:
                ids = [chance.randrange(199) for _ in range(chance.randrange(1, 25))]
                streams.append(engine.submit(greedy(ids=ids)))
            elif streams and chance.random() < 0.08:
                index = chance.randrange(len(streams))
                if streams[index].result.finish_reason is None:
                    gone.add(index)
                    streams[index].cancel()
            else:
                engine.step()
        for index, stream in enumerate(streams):
            expected = plain(model, stream._generation.tokens[: stream._generation.prompt], NEW)
            result = stream.result
            assert result.finish_reason == ("cancelled" if index in gone else "length")
            assert result.tokens == expected[: len(result.tokens)]
            assert [event.token for event in stream if event.token is not None] == result.tokens
        assert engine.free_pages == engine.pages
        left += len(gone)
    assert left > 2


def test_a_stream_brings_every_token_as_it_comes() -> None:
    model = lively()
    engine = Engine(model)
    other = engine.submit(greedy(ids=PROMPTS[1]))
    events: list[Event] = []
    for event in engine.submit(greedy()):
        events.append(event)
        assert len(other.result.tokens) == len(events), "the other goes on beside"
    assert [event.token for event in events] == plain(model, PROMPTS[0], NEW)
    assert [event.finish_reason for event in events] == [None] * (NEW - 1) + ["length"]
    assert [event.token for event in other] == plain(model, PROMPTS[1], NEW)


@pytest.mark.parametrize("how", ["break", "close", "lost", "error"])
def test_who_leaves_mid_stream_gives_his_pages_back(how: str) -> None:
    model = lively()
    engine = Engine(model)
    other = engine.submit(greedy(ids=PROMPTS[1]))
    stream = engine.submit(greedy())
    result = stream.result
    if how == "lost":
        next(stream)
        del stream
        gc.collect()
        engine.step()
    elif how == "close":
        next(stream)
        stream.cancel()
        assert list(stream) == [Event(None, finish_reason="cancelled")]
        stream.cancel()
    else:
        try:
            with stream:
                for _ in stream:
                    if how == "error":
                        raise RuntimeError
                    break
        except RuntimeError:
            pass
    assert result.finish_reason == "cancelled"
    assert engine.pages - engine.free_pages == 1, "the other's alone"
    assert [event.token for event in other] == plain(model, PROMPTS[1], NEW)
    assert not engine.busy


def test_requests_that_begin_alike_share_pages() -> None:
    model = lively()
    ids = [i % 190 for i in range(40)]
    engine = Engine(model, max_sequences=8)
    streams = [engine.submit(greedy(ids=[*ids, *tail])) for tail in ([1], [2, 3], [1], [])]
    engine.step()
    assert engine.pages - engine.free_pages == 2 + 4, "two full pages for all, one each for the rest"
    for stream, tail in zip(streams, ([1], [2, 3], [1], []), strict=True):
        assert [event.token for event in stream] == plain(model, [*ids, *tail], min(NEW, 24 - len(tail)))
    assert engine.free_pages == engine.pages


def test_shared_pages_do_not_outlive_their_holders() -> None:
    """The weights may have changed: keys and values of an earlier request would be those of another model."""
    model = lively()
    engine = Engine(model)
    request = greedy(ids=[i % 190 for i in range(33)])
    before = engine.run([request])[0].tokens
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-1)
    after = engine.run([request])[0].tokens
    assert after != before
    assert after == plain(model, list(request.ids), NEW)


def test_pages_are_shared_while_they_are_held() -> None:
    pages = Pages(6, 4)
    tokens = list(range(11))
    mine = [pages.take() for _ in range(3)]
    assert pages.shared(tokens) == []
    pages.publish(mine, 0, tokens[:9])
    assert pages.shared(tokens) == mine[:2]
    assert pages.shared([0, 1, 2, 3, 9, 9, 9, 9]) == mine[:1]
    assert pages.shared(tokens[4:]) == [], "the same tokens behind others are others"
    pages.hold(mine[:2])
    pages.give_back(mine)
    assert (pages.free, pages.shared(tokens)) == (4, mine[:2])
    pages.give_back(mine[:2])
    assert (pages.free, pages.shared(tokens)) == (6, [])


def test_stop_ids_and_what_is_kept() -> None:
    model = lively()
    free = plain(model, PROMPTS[0], NEW)
    end = free[10]
    first = free.index(end)
    for keep in (False, True):
        how = {"stop_ids": [end], "keep_stop_id": keep, "logprobs": 0}
        result = Engine(model).run([greedy(**how)])[0]
        assert result.tokens == free[: first + keep]
        assert (result.finish_reason, result.stopped_by) == ("stop", end)
        assert result.logprobs is not None
        assert len(result.logprobs) == len(result.tokens)


def test_stop_strings_across_tokens() -> None:
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"], 384)
    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    free = Engine(model).run([Request([9], SamplingParams(60))])[0].tokens
    text = tokenizer.decode(free)
    for stop in (text[7:10], text[20:21], "nowhere"):
        result = Engine(model, guesses=4).run([Request([9], SamplingParams(60, stop=[stop, "absent"]))])[0]
        seen = tokenizer.decode(result.tokens)
        if stop == "nowhere":
            assert result.finish_reason == "length"
            continue
        assert (result.finish_reason, result.stopped_by) == ("stop", stop)
        assert stop in seen
        assert stop not in tokenizer.decode(result.tokens[:-1])


def test_text_comes_in_whole_characters_and_never_shows_a_part_of_a_stop_string() -> None:
    tokenizer = train_tokenizer(["naïve"], 384)  # no merges: characters fall into bytes
    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    engine = Engine(model)
    sent: list[int] = tokenizer.encode("café 😀 Möbelstück; def f(): pass\n\nclass A")

    def pieces(stop: str) -> list[str]:
        """What streams of these very tokens show: the model's own are beside the point here."""
        events = TextPieces(tokenizer, [stop])
        shown = [events.push(token) for token in sent]
        return [piece for piece in [*shown, events.end()] if piece]

    text = tokenizer.decode(sent)
    assert len(pieces("nowhere")) > 20
    for start in range(len(text)):
        for end in (start + 1, start + 4, start + 9):
            shown = pieces(text[start:end])
            assert "".join(shown) == text[: text.index(text[start:end])]
            assert "\ufffd" not in "".join(shown)

    whole = Engine(model).run([Request([9], SamplingParams(60))])[0].tokens
    assert "".join(engine.stream(Request([9], SamplingParams(60)))) == tokenizer.decode(whole)
    first = engine.stream(Request([9], SamplingParams(60)))
    assert next(first)
    assert engine.busy, "the first piece is there before the rest is made"
    assert "".join(engine.stream(Request([9], SamplingParams(60)))) == tokenizer.decode(whole)


@pytest.mark.parametrize("how", ["close", "lost", "interrupted", "never begun"])
def test_who_leaves_a_text_gives_his_pages_back(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(vocab_size=400)
    model.tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"], 384)
    engine = Engine(model)
    other = engine.submit(greedy(ids=PROMPTS[1]))
    text = engine.stream(greedy())
    if how != "never begun":
        next(text)
    if how == "interrupted":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(engine, "step", _interrupted)
            list(text)
    elif how == "close":
        text.close()  # type: ignore[attr-defined]
    else:
        del text
        gc.collect()
        engine.step()
    assert engine.pages - engine.free_pages <= 1, "the other's alone"
    assert [event.token for event in other] == plain(model, PROMPTS[1], NEW)
    assert (engine.busy, engine.free_pages) == (False, engine.pages)


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [{}, {"guesses": 5}, {"kv_tokens": 64}])
def test_log_probabilities_are_the_models_own(settings: dict[str, Any]) -> None:
    model = lively()
    how = {"logprobs": 3, "temperature": 0.8, "top_k": 5}
    requests = [greedy(ids=prompt, seed=index, **how) for index, prompt in enumerate(PROMPTS)]
    for request, result in zip(requests, Engine(model, **settings).run(requests), strict=True):
        whole = torch.tensor([*request.ids, *result.tokens])
        with torch.no_grad():
            hidden = model(whole, torch.arange(len(whole)), torch.tensor([0, len(whole)], dtype=torch.int32), 64)
            exact = torch.log_softmax(model.logits(hidden).double(), -1)[len(request.ids) - 1 : -1]
        assert result.logprobs is not None
        assert result.top_logprobs is not None
        own = exact.gather(1, torch.tensor(result.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(result.logprobs).double(), own, atol=2e-4, rtol=0)
        top = exact.topk(3)
        assert [[token for token, _ in row] for row in result.top_logprobs] == top.indices.tolist()
        values = torch.tensor([[value for _, value in row] for row in result.top_logprobs]).double()
        torch.testing.assert_close(values, top.values, atol=2e-4, rtol=0)


def test_nothing_asked_nothing_made() -> None:
    engine = Engine(lively())
    assert engine.run([]) == []
    assert engine.run([Request([1], SamplingParams(0))]) == [Result([], finish_reason="length")]
    engine.step()
    assert not engine.busy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_sequences": 0}, "max_sequences is 0"),
        ({"page_size": 24}, "page_size is 24"),
        ({"step_tokens": 3}, "step_tokens is 3, and 256 requests may run"),
        ({"guesses": 16}, "guesses is 16"),
        ({"kv_dtype": torch.float16}, "kv_dtype is torch.float16"),
        ({"cuda_graph": True}, "cuda_graph asks for a GPU"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MifyError, match=words):
        Engine(lively(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": float("inf")}, "temperature"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 1000}, "logprobs"),
    ],
)
def test_parameters_that_cannot_be_meant(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MifyError, match=words):
        SamplingParams(**options)


def test_one_stop_string_is_not_its_letters_and_a_text_is_no_prompt() -> None:
    assert SamplingParams(stop="END") == SamplingParams(stop=("END",))
    with pytest.raises(MifyError, match="token ids, not a text"):
        Request("def")  # type: ignore[arg-type]


def test_requests_that_cannot_be_served_are_refused_before_anything_runs() -> None:
    model = lively()
    engine = Engine(model, kv_tokens=48)
    with pytest.raises(MifyError, match="request 1: a request of 11 \\+ 50 tokens can never fit: .* room for 48"):
        engine.run([greedy(), Request(PROMPTS[2], SamplingParams(50))])
    assert not engine.busy
    assert engine.free_pages == engine.pages
    with pytest.raises(MifyError, match="has no tokenizer"):
        engine.submit(greedy(stop=["x"]))
    # 48 tokens and the last one, which is never cached: this fits exactly.
    assert len(engine.run([Request(PROMPTS[2], SamplingParams(38))])[0].tokens) == 38


def test_weights_that_are_not_finite_are_named_and_nobody_hangs() -> None:
    model = lively()
    engine = Engine(model)
    good = engine.submit(greedy(ids=[3, 1, 4, 1]))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    bad = engine.submit(greedy(ids=[7, 7]))
    with pytest.raises(MifyError, match="the logits behind token . of a request are NaN or infinite"):
        engine.run([])
        while engine.busy:
            engine.step()
    assert "cancelled" in (bad.result.finish_reason, good.result.finish_reason)


def test_a_pass_that_fails_leaves_an_engine_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively()
    engine = Engine(model)
    streams = [engine.submit(greedy(ids=prompt)) for prompt in PROMPTS]
    for _ in range(5):
        engine.step()
    real = Model.logits
    monkeypatch.setattr(Model, "logits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(Model, "logits", real)
    for stream, prompt in zip(streams, PROMPTS, strict=True):
        assert [event.token for event in stream] == plain(model, prompt, NEW)
