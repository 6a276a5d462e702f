"""Conversations: the loss lies on the assistant's words alone, nothing is cut, order is a function of the step."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from mify.data.batch import IGNORE_LABEL
from mify.errors import MifyError
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.config import load_recipe
from mify.training.objectives.sft import ConversationStream, render
from mify.training.trainer import train

CONTEXT = 256


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"messages": conversation(index)}) for index in range(40)]
    lines.append(json.dumps({"messages": [{"role": "assistant", "content": "x y z " * 300}]}))
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def stream(folder: Path, tokenizer: Tokenizer, **changes: int) -> ConversationStream:
    options = {"context": CONTEXT, "rows_per_step": 4, "seed": 5} | changes
    return ConversationStream([("chat", folder, 1.0)], tokenizer, **options)


def test_the_loss_lies_on_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    ids, loss = render(conversation(7), tokenizer)
    said = tokenizer.decode([token for token, own in zip(ids, loss, strict=True) if own])
    assert said == "def add7(a, b): return a + b<|im_end|>No <|endoftext|>.<|im_end|>"
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou are number 7.<|im_end|>\n<|im_start|>user\nWrite <|im_end|> a")
    assert text.endswith("No <|endoftext|>.<|im_end|>\n<|endoftext|>")
    # What a content says of special tokens is text: the real ones are the eleven of the template.
    assert ids.count(tokenizer.im_end_id) == 5
    assert ids.count(tokenizer.eot_id) == 1


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
    twice = ConversationStream([("chat", folder, 2.0)], tokenizer, context=CONTEXT, rows_per_step=1, seed=5)
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
        ('{"text": 1}', "messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot' is none of"),
        ('{"messages": [{"role": "user", "content": 3}]}', "int, not text"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the assistant says nothing"),
        ('{"messages": ["x"]}', "is no conversation"),
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
        ConversationStream([("chat", folder, 0.5)], tokenizer, context=CONTEXT, rows_per_step=1, seed=5)
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
    skipping = ConversationStream(
        [("chat", folder, 1.0)], tokenizer, context=CONTEXT, rows_per_step=batch.num_rows, seed=5, skip=names[0]
    )
    first, other = next(iter(skipping)).split(batch.num_rows)[0], batch.split(batch.num_rows)[0]
    assert torch.equal(first.tokens, other.tokens)
    assert other.num_labels
    assert not first.num_labels
