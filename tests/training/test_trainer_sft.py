"""Conversations: the loss lies on the assistant's words alone, nothing is cut, order is a function of the step."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mify.data.batch import IGNORE_LABEL
from mify.errors import MifyError
from mify.post.chat import Conversation
from mify.post.chat import render as render_conversation
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.config import ConversationsSection, load_recipe
from mify.training.objectives.conversations import Source, fit
from mify.training.objectives.sft import ConversationStream
from mify.training.trainer import train

CONTEXT = 256
LONG = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x y z " * 300}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["user assistant system Write a function that adds. def add(a, b): return a + b\n"] * 4, 420)


def conversation(index: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"You are number {index}."},
        {"role": "user", "content": "Write <|im_end|> a function " * (1 + index % 3)},
        {"role": "assistant", "content": f"def add{index}(a, b): return a + b"},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "No <|endoftext|>."},
    ]


def render(messages: list[dict[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    return render_conversation(Conversation.from_dict({"messages": messages}), tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"messages": conversation(index)}) for index in range(40)]
    lines.append(json.dumps({"messages": [*conversation(40), *LONG]}))
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def stream(folder: Path, tokenizer: Tokenizer, **changes: Any) -> ConversationStream:
    options: dict[str, Any] = {"context": CONTEXT, "rows_per_step": 4, "seed": 5} | changes
    return ConversationStream([Source("chat", folder, options.pop("weight", 1.0))], tokenizer, **options)


def test_the_loss_lies_on_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    ids, loss = render(conversation(7), tokenizer)
    said = tokenizer.decode([token for token, own in zip(ids, loss, strict=True) if own])
    assert said == "def add7(a, b): return a + b<|im_end|>No <|endoftext|>.<|im_end|>"
    # What a content says of special tokens is text.
    assert ids.count(tokenizer.im_end_id) == 5
    assert ids.count(tokenizer.eot_id) == 0


def test_an_epoch_holds_every_conversation_once_and_whole(folder: Path, tokenizer: Tokenizer) -> None:
    source = stream(folder, tokenizer, rows_per_step=1)
    seen: list[str] = []
    batches = iter(source)
    while source.state_dict()["epoch"] == 0:
        batch = next(batches)
        bounds = batch.cu_seqlens.unique().tolist()
        for low, high in pairwise(bounds):
            ids = batch.tokens[low:high].tolist()
            assert batch.positions[low:high].tolist() == list(range(high - low))
            if set(ids) == {tokenizer.pad_id}:
                assert set(batch.labels[low:high].tolist()) == {IGNORE_LABEL}
                continue
            expected, loss = render(
                conversation(int(tokenizer.decode(ids).split("number ")[1].split(".")[0])), tokenizer
            )
            assert ids == expected
            want = [t if own else IGNORE_LABEL for t, own in zip(expected, loss, strict=True)][1:]
            assert batch.labels[low:high].tolist() == [*want, IGNORE_LABEL]
            seen.append(tokenizer.decode(ids))
    assert len(seen) == len(set(seen)) == 40
    assert source.ledger()["chat"]["too_long"] == 1


def test_ranks_share_the_batch_and_a_state_goes_on_exactly(folder: Path, tokenizer: Tokenizer) -> None:
    whole = list(islice(stream(folder, tokenizer), 30))
    halves = [list(islice(stream(folder, tokenizer, rank=rank, world_size=2), 30)) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch.tokens, torch.cat([first.tokens, second.tokens]))
        assert torch.equal(batch.labels, torch.cat([first.labels, second.labels]))
    before = stream(folder, tokenizer)
    for _ in islice(before, 11):
        pass
    after = stream(folder, tokenizer)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for batch, again in zip(whole[11:], islice(after, 19), strict=True):
        assert torch.equal(batch.tokens, again.tokens)
    assert before.ledger() != after.ledger()
    orders = {tuple(b.tokens.tolist()) for b in islice(stream(folder, tokenizer, seed=6), 3)}
    assert not orders & {tuple(b.tokens.tolist()) for b in whole[:3]}


def test_a_weight_repeats_within_the_epoch(folder: Path, tokenizer: Tokenizer) -> None:
    twice = stream(folder, tokenizer, weight=2.0, rows_per_step=1)
    for _ in twice:
        if twice.state_dict()["epoch"]:
            break
    once = stream(folder, tokenizer, rows_per_step=1)
    total = sum(len(render(conversation(index), tokenizer)[0]) for index in range(40))
    assert twice.ledger()["chat"]["tokens"] == 2 * total
    for _ in once:
        if once.state_dict()["epoch"]:
            break
    assert once.ledger()["chat"]["tokens"] == total


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1, is no conversation"),
        ('{"text": 1}', "no list of messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "unknown role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "int, not text"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "nothing to learn"),
        ('{"messages": ["x"]}', "bad message"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "roles out of order"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
            "empty assistant turn",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: Tokenizer, line: str, problem: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(MifyError, match=r"bad\.jsonl, line 1") as caught:
        stream(tmp_path, tokenizer)
    assert problem in caught.value.problem


def test_bad_sources_are_named(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MifyError, match=r"holds no \.jsonl"):
        stream(tmp_path / "nothing", tokenizer)
    with pytest.raises(MifyError, match="no conversation fits"):
        stream(folder, tokenizer, context=16)
    with pytest.raises(MifyError, match="no whole number"):
        stream(folder, tokenizer, weight=0.5)
    other = stream(folder, tokenizer)
    with pytest.raises(MifyError, match="others than these"):
        other.load_state_dict(stream(folder, tokenizer, seed=6).state_dict())


def test_the_recipe_drops_the_sources_it_inherits(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    assert sorted(load_recipe("sft-2.5b").data.sources) == ["instructions", "safety"]
    config = load_recipe(
        "sft-2.5b",
        [
            "--data.sources.safety=none", f"--data.sources.instructions.path={folder}", "--name=s", "--steps=4",
            f"--data.tokenizer={tmp_path / 'tokenizer'}", f"--folder={tmp_path}", "--init.weights=none",
            "--model.preset=mify-tiny", "--model.num_layers=1", "--model.vocab_size=420", "--data.context=256",
            "--data.rows_per_step=2", "--data.micro_rows=none", "--schedule.warmup_steps=1",
            "--parallel.precision=fp32",
            "--parallel.compile=false", "--evaluation.held_out=none", "--optimizer.learning_rate=1e-2",
        ],
    )  # fmt: skip
    losses: list[float] = []
    result = train(config, lambda step, steps, record: losses.append(record["loss"]))
    assert result.step == 4
    assert losses[-1] < losses[0]
    assert result.ledger["instructions"]["too_long"] == 1


def test_a_batch_names_its_conversations_and_one_that_is_skipped_carries_no_loss(
    folder: Path, tokenizer: Tokenizer
) -> None:
    source = stream(folder, tokenizer)
    state = source.state_dict()
    names = source.documents_after(state)
    assert source.state_dict() == state
    batch = next(iter(source))
    assert len(names) == batch.num_rows
    assert all(names)
    skipping = stream(folder, tokenizer, skip=names[0])
    first, other = next(iter(skipping)).split(batch.num_rows)[0], batch.split(batch.num_rows)[0]
    assert torch.equal(first.tokens, other.tokens)
    assert other.num_labels
    assert not first.num_labels


def lines(count: int, start: int = 0) -> list[str]:
    return [json.dumps({"messages": conversation(index)}) for index in range(start, start + count)]


BAD = [
    "{",
    json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}),
    json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\n"}]}),
    json.dumps({"id": "a", "messages": conversation(1)}),
    json.dumps({"id": "a", "messages": conversation(2)}),
    json.dumps({
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        ],
        "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}],
    }),
]  # fmt: skip


def test_bad_conversations_are_counted_by_reason_and_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join([*BAD, *lines(3, 10)]), encoding="utf-8")
    source = stream(tmp_path, tokenizer, rules=ConversationsSection(bad="drop"))
    entry = source.ledger()["chat"]
    assert entry["conversations"] == 4
    assert entry["rejected"] == {
        "not_json": 1, "roles_out_of_order": 1, "empty_assistant_turn": 1, "duplicate_id": 1,
        "arguments_do_not_match": 1,
    }  # fmt: skip
    assert source.notes()[0].startswith("chat: 4 conversations; dropped: 1 not json, 1 roles out of order")


def test_what_is_too_long_is_dropped_cut_behind_an_answer_or_stops_the_run(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MifyError, match="line 41, has 1,"):
        stream(folder, tokenizer, rules=ConversationsSection(too_long="stop"))
    dropped = stream(folder, tokenizer).ledger()["chat"]
    cut = stream(folder, tokenizer, rules=ConversationsSection(too_long="truncate"))
    _, loss = render([*conversation(40), *LONG], tokenizer)
    whole, _ = render(conversation(40), tokenizer)
    kept = cut.conversations.ids[cut.conversations.offsets[40] :].tolist()
    assert kept == whole[:-1]  # but for the line end behind the last <|im_end|>
    entry = cut.ledger()["chat"]
    assert (entry["conversations"], entry["truncated"], entry["too_long"]) == (41, 1, 0)
    assert (dropped["conversations"], dropped["truncated"], dropped["too_long"]) == (40, 0, 1)
    assert dropped["supervised_cut"] == sum(loss)
    assert entry["supervised_cut"] == sum(loss[len(kept) :])
    assert "cut to the context: 1" in cut.notes()[0]
    # An answer that alone passes the context is cut inside; a question that does leaves nothing to learn.
    assert fit([False] * 4 + [True] * 8, 6) == 6
    assert fit([False] * 8 + [True] * 2, 6) == 0
    assert fit([False, True, True, False, True, True], 5) == 3
    assert fit([True] * 3, 3) == 3


def test_stages_nest_and_safety_is_one_in_five_exactly(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, count, start in (("general", 100, 0), ("safety", 30, 200)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines(count, start)), encoding="utf-8")
    sources = [
        Source("general", tmp_path / "general.jsonl", parts=4),
        Source("safety", tmp_path / "safety.jsonl", parts=1),
    ]

    def opened(*stages: int, **changes: Any) -> ConversationStream:
        rules = ConversationsSection(stages=stages, stage_epochs=2)
        options = {"context": CONTEXT, "rows_per_step": 1, "seed": 5} | changes
        return ConversationStream(sources, tokenizer, rules=rules, **options)

    source = opened(10, 52, 1000)
    seen: dict[int, set[str]] = {}
    while source.state_dict()["epoch"] < 5:
        epoch = source.state_dict()["epoch"]
        (names,) = source.documents_after(source.state_dict())
        seen.setdefault(epoch, set()).update(names)
        next(iter(source))
    assert [len(seen[epoch]) for epoch in range(5)] == [10, 10, 50, 50, 125]
    assert seen[0] == seen[1] < seen[2] == seen[3] < seen[4]
    assert source.ledger()["safety"]["stage"] == 3
    # 100 of one and 30 of the other allow 25 times (4, 1).
    for size in (10, 52, 1000):
        chosen = source.conversations.chosen(5, size)
        of_safety = int((source.conversations.source[chosen] == 1).sum())
        assert of_safety * 5 == len(chosen)
    assert source.notes()[2].startswith("stage 1 of 3: 8 general, 2 safety; about ")
    # What is added elsewhere moves nobody out of his place, and the seed draws anew.
    before = {source.conversations.identity(n) for n in source.conversations.chosen(5, 50)}
    (tmp_path / "general.jsonl").write_text("\n".join([*lines(50, 400), *lines(100)]), encoding="utf-8")
    more = opened(10, 52, 1000).conversations
    after = [more.identity(n) for n in more.chosen(5, 50)]
    old = {source.conversations.identity(n) for n in range(130)}
    assert set(after) & old <= before
    assert {source.conversations.identity(n) for n in source.conversations.chosen(6, 50)} != before
    with pytest.raises(MifyError, match="others than these"):
        opened(10, 52).load_state_dict(source.state_dict())
    with pytest.raises(MifyError, match="fewer than its parts"):
        opened(4)
    for wrong in (Source("safety", tmp_path / "safety.jsonl"), Source("safety", tmp_path / "safety.jsonl", 2.0, 1)):
        with pytest.raises(MifyError, match="parts"):
            ConversationStream([sources[0], wrong], tokenizer, context=CONTEXT, rows_per_step=1, seed=5)


def test_the_ratio_of_safety_is_checked_by_categories(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def labelled(texts: list[str], category: str) -> str:
        return "\n".join(json.dumps({**json.loads(text), "category": category}) for text in texts)

    (tmp_path / "general.jsonl").write_text("\n".join(lines(40, 0)), encoding="utf-8")
    (tmp_path / "safety.jsonl").write_text(labelled(lines(12, 200), "1.2.7"), encoding="utf-8")
    general, safety = (tmp_path / f"{name}.jsonl" for name in ("general", "safety"))

    def opened(parts: tuple[int, int], *ratio: int) -> ConversationStream:
        sources = [Source("general", general, parts=parts[0]), Source("safety", safety, parts=parts[1])]
        rules = ConversationsSection(safety=ratio)
        return ConversationStream(sources, tokenizer, rules=rules, context=CONTEXT, rows_per_step=1, seed=5)

    known = opened((4, 1), 1, 4)
    chosen = known.conversations.chosen(5)
    assert int(known.conversations.harmful[chosen].sum()) * 5 == len(chosen) == 50
    assert known.ledger()["safety"]["harmful"] == 12
    assert "12 of them answers to harmful requests" in known.notes()[1]
    with pytest.raises(MifyError, match="12 harmful and 36 general conversations are not 1:4"):
        opened((3, 1), 1, 4)
    with pytest.raises(MifyError, match="is no ratio"):
        opened((4, 1), 4)
    safety.write_text(labelled(lines(12, 200), ""), encoding="utf-8")  # nobody said what they are
    with pytest.raises(MifyError, match="0 harmful and 50 general"):
        opened((4, 1), 1, 4)


def test_the_report_shows_what_was_left_out(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from mify.training.report import _conversations

    page = _conversations(stream(folder, tokenizer).ledger())
    assert "too long" in page
    assert "<td class=n>40</td>" in page


def test_what_was_rendered_is_kept_and_made_anew_for_other_files(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mify.training.objectives import conversations

    cache = tmp_path / "cache" / "conversations"
    first = stream(folder, tokenizer, cache=cache)
    names = first.documents_after(first.state_dict())
    rendered: list[int] = []
    render_one = conversations.render

    def counted(*arguments: Any) -> Any:
        rendered.append(1)
        return render_one(*arguments)

    monkeypatch.setattr(conversations, "render", counted)
    second = stream(folder, tokenizer, cache=cache)
    assert not rendered
    assert second.ledger() == first.ledger()
    assert second.notes() == first.notes()
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second)).tokens, next(iter(first)).tokens)
    skipping = stream(folder, tokenizer, cache=cache, skip=names[0])
    assert not rendered
    assert next(iter(skipping)).split(4)[0].num_labels == 0
    (folder / "chat.jsonl").write_text("\n".join(lines(5)), encoding="utf-8")
    assert stream(folder, tokenizer, cache=cache).ledger()["chat"]["conversations"] == 5
    assert len(rendered) == 5
    other = stream(folder, tokenizer, cache=cache, context=512, rank=1, world_size=2)
    assert len(rendered) == 10
    assert other.context == 512
    assert not list(cache.parent.glob(".*"))


def test_without_a_tokenizer_the_run_says_so(folder: Path, tmp_path: Path) -> None:
    config = load_recipe("sft-2.5b", [
        "--data.sources.safety=none", f"--data.sources.instructions.path={folder}", f"--folder={tmp_path}",
        "--data.tokenizer=none", "--init.weights=none", "--parallel.precision=fp32", "--model.preset=mify-tiny",
        "--data.context=256",
    ])  # fmt: skip
    with pytest.raises(MifyError, match="sft needs a tokenizer"):
        train(config, lambda step, steps, record: None)
