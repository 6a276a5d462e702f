"""The chat format: one string for all engines, loss on the assistant's words to the token, names for what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mify.config import model_config
from mify.export import llama_cpp
from mify.export.chat_template import CHAT_TEMPLATE, render_chat
from mify.export.conventions import Conventions
from mify.export.gguf import export_gguf
from mify.model import Model
from mify.post.chat import BadConversation, Conversation, check, render
from mify.tokenizer import Tokenizer

Make = Callable[..., Conversation]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1.0}}}


def text_of(conversation: Conversation) -> str:
    messages = [message.to_dict() for message in conversation.messages]
    return render_chat(
        CHAT_TEMPLATE, messages, tools=list(conversation.tools) or None, add_generation_prompt=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`transformers`' tokenizer with our template."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.chat_template = CHAT_TEMPLATE
    return found


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ids_and_mask_are_those_of_transformers(
    tokenizer: Tokenizer, theirs: Any, make_conversation: Make, count: int
) -> None:
    for seed in range(count):
        conversation = make_conversation(seed)
        check(conversation)
        ids, loss = render(conversation, tokenizer)
        expected = theirs.apply_chat_template(
            [message.to_dict() for message in conversation.messages], tools=list(conversation.tools) or None,
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        assert ids == expected["input_ids"], seed
        assert [int(own) for own in loss] == expected["assistant_masks"], seed


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
def test_llama_cpp_renders_the_same_string(tokenizer: Tokenizer, make_conversation: Make, tmp_path: Path) -> None:
    """Its JSON writes numbers with six digits and 2.0 as 2, so the made-up arguments hold no others."""
    shape = {"hidden_size": 32, "num_query_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_size": 64}
    model = Model(model_config("mify-tiny", num_layers=1, vocab_size=704, context=256, **shape))
    model.tokenizer = tokenizer
    export_gguf(model, tmp_path / "m.gguf")
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        for seed in range(80):
            conversation = make_conversation(seed, names=True)
            # An answer at the end would be taken for the begin of one.
            messages = [*(message.to_dict() for message in conversation.messages), {"role": "user", "content": "?"}]
            tools = list(conversation.tools)
            expected = render_chat(CHAT_TEMPLATE, messages, tools=tools or None)
            for message in messages:
                for call in message.get("tool_calls", ()):
                    function = call["function"]
                    call["function"] = {**function, "arguments": json.dumps(function["arguments"])}
            body = {"messages": messages} | ({"tools": tools} if tools else {})
            assert server.request("/apply-template", body)["prompt"] == expected, seed


def test_names_of_special_tokens_stay_text(tokenizer: Tokenizer, make_conversation: Make) -> None:
    """The ids give the string, and the special ones among them are those that the template wrote."""

    def broken(value: Any) -> Any:
        """`value` without a special token's name in it."""
        if isinstance(value, str):
            return re.sub("|".join(map(re.escape, tokenizer.special)), "name", value)
        if isinstance(value, dict):
            return {broken(key): broken(item) for key, item in value.items()}
        return [broken(item) for item in value] if isinstance(value, list) else value

    told_apart = 0
    for seed in range(200):
        conversation = make_conversation(seed, names=True)
        ids, _ = render(conversation, tokenizer)
        text = text_of(conversation)
        assert tokenizer.decode(ids) == text
        written = text_of(Conversation.from_dict(broken(conversation.to_dict())))
        for name, index in tokenizer.special.items():
            assert ids.count(index) == written.count(name), (seed, name)
        told_apart += text.count("<|im_end|>") > written.count("<|im_end|>")
    assert told_apart > 50


def test_loss_lies_on_reasoning_text_calls_and_the_end(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "hi <|im_end|>"},
        {"role": "assistant", "content": "It is", "reasoning_content": "why", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "a"},
        {"role": "assistant", "content": "four", "weight": 0},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    conversation = Conversation.from_dict({"messages": messages})
    check(conversation)
    ids, loss = render(conversation, tokenizer)
    said = tokenizer.decode([token for token, own in zip(ids, loss, strict=True) if own])
    assert said == (
        '<think>\nwhy\n</think>\n\nIt is\n<tool_call>\n{"name": "f", "arguments": {"x": 1.0}}\n</tool_call><|im_end|>'
        "yes<|im_end|>"
    )
    begun, _ = render(Conversation(conversation.messages[:1]), tokenizer, prompt=True)
    assert tokenizer.decode(begun) == "<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert begun.count(tokenizer.im_end_id) == 1


def test_a_line_comes_back(make_conversation: Make) -> None:
    for seed in range(50):
        conversation = make_conversation(seed, names=True)
        assert Conversation.from_json(conversation.to_json()) == conversation
    line = {"messages": [{"role": "user", "content": "x", "mood": 1}], "id": 7, "mine": [1], "category": "c"}
    read = Conversation.from_dict(line)
    assert (read.id, read.category, read.extra, read.messages[0].extra) == ("7", "c", {"mine": [1]}, {"mood": 1})
    assert Conversation.from_json(read.to_json()) == read
    assert json.loads(read.to_json())["mine"] == [1]
    assert read.key == Conversation(read.messages, id="other").key
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Conversation.from_dict({"messages": [{"role": "user", "content": parts}]}).messages[0].content == "ab"


USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1", "tool_call_id": "a"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ANSWER], "roles_out_of_order"),
        ([USER, USER], "roles_out_of_order"),
        ([USER, ANSWER, ANSWER], "roles_out_of_order"),
        ([USER, ANSWER, {"role": "system", "content": "s"}], "roles_out_of_order"),
        ([USER, RESULT, ANSWER], "roles_out_of_order"),
        ([USER, ANSWER, RESULT], "result_without_call"),
        ([USER, CALLING, RESULT, RESULT, ANSWER], "result_without_call"),
        ([USER, CALLING, {**RESULT, "tool_call_id": "b"}], "result_without_call"),
        ([USER, CALLING, USER], "result_missing"),
        ([USER, CALLING, RESULT, CALLING], "duplicate_call_id"),
        ([USER, {"role": "assistant", "content": " \n"}], "empty_assistant_turn"),
        ([USER], "nothing_to_learn"),
        ([USER, {**ANSWER, "weight": 0}], "nothing_to_learn"),
        ([], "no_messages"),
        (["x"], "bad_message"),
        ([{**USER, "tool_calls": [CALL]}], "bad_message"),
        ([USER, {**ANSWER, "weight": 2}], "bad_message"),
        ([{"role": "robot", "content": "x"}], "unknown_role"),
        ([{"role": "user", "content": 3}], "content_not_text"),
        ([{"role": "user", "content": "\ud800"}], "not_json"),
        ([USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "bad_tool_call"),
        ([USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"":1,"":2}'}}]}], "bad_tool_call"),
        ([USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "bad_tool_call"),
        ([USER, {**ANSWER, "tool_calls": [{"function": {"arguments": {}}}]}], "bad_tool_call"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_name(messages: list[Any], reason: str) -> None:
    with pytest.raises(BadConversation) as caught:
        check(Conversation.from_dict({"messages": messages}))
    assert caught.value.reason == reason


def test_what_is_no_conversation_has_a_name() -> None:
    for line, reason in [
        ("{", "not_json"), ("[]", "not_an_object"), ('{"text": 1}', "no_messages"),
        ('{"format": "other", "messages": []}', "unknown_format"), ('{"version": 2, "messages": []}', "unknown_format"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [1]}', "bad_tool"),
    ]:  # fmt: skip
        with pytest.raises(BadConversation) as caught:
            Conversation.from_json(line)
        assert caught.value.reason == reason


def test_a_prompt_needs_no_answer() -> None:
    check(Conversation.from_dict({"messages": [USER]}), answered=False)
    check(Conversation.from_dict({"messages": [USER, CALLING, RESULT]}), answered=False)


def test_a_template_without_generation_is_told_of(tokenizer: Tokenizer) -> None:
    conversation = Conversation.from_dict({"messages": [USER, ANSWER]})
    with pytest.raises(ValueError, match="marks 0 of 1"):
        render(conversation, tokenizer, template="{{ messages[0]['content'] }}")


def test_a_vocabulary_with_turns_but_no_tags_has_the_template_too(tokenizer: Tokenizer) -> None:
    """As SmolLM2's: <think> and <tool_call> are text there, turns are tokens."""
    turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    kept = [token for token in tokenizer.definition["added_tokens"] if token["content"] in turns]
    plain = Tokenizer({**tokenizer.definition, "added_tokens": kept})
    assert Conventions.of(plain).chat_template == CHAT_TEMPLATE
    assert Conventions.of(Tokenizer({**tokenizer.definition, "added_tokens": kept[:1]})).chat_template is None
    messages = [USER, {**ANSWER, "reasoning_content": "why"}]
    ids, loss = render(Conversation.from_dict({"messages": messages}), plain)
    said = plain.decode([token for token, own in zip(ids, loss, strict=True) if own])
    assert said == "<think>\nwhy\n</think>\n\ny<|im_end|>"
