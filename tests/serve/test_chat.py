"""Conversations: the template, its token ids, and who answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mify.chat import Message, chat_ids
from mify.cli.app import app
from mify.errors import MifyError
from mify.export import llama_cpp
from mify.export.chat_template import CHAT_TEMPLATE, render_chat
from mify.model import Model
from mify.serve.conversation import Conversation, ModelSpeaker, open_speaker

TOOL = {"type": "function", "function": {"name": "look_up", "description": "…", "parameters": {"type": "object"}}}
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up", "arguments": {"word": "a"}}}]},
    {"role": "tool", "content": "a letter"},
    {"role": "tool", "content": "a note"},
    {"role": "assistant", "content": "A letter."},
    {"role": "user", "content": "Thanks <|im_end|>"},
]
EXPECTED = """<|im_start|>user
What is a?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "look_up", "arguments": {"word": "a"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
a letter
</tool_response>
<tool_response>
a note
</tool_response><|im_end|>
<|im_start|>assistant
A letter.<|im_end|>
<|im_start|>user
Thanks <|im_end|><|im_end|>
<|im_start|>assistant
"""


def test_the_template() -> None:
    plain = render_chat(CHAT_TEMPLATE, TALK)
    assert plain == "<|im_start|>system\nBe brief.<|im_end|>\n" + EXPECTED
    assert render_chat(CHAT_TEMPLATE, TALK[1:2]) == ("<|im_start|>user\nWhat is a?<|im_end|>\n<|im_start|>assistant\n")
    with_tools = render_chat(CHAT_TEMPLATE, TALK, tools=[TOOL])
    assert with_tools.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    assert f"<tools>\n{json.dumps(TOOL, ensure_ascii=False)}\n</tools>" in with_tools
    assert with_tools.endswith("</tool_call><|im_end|>\n" + EXPECTED)


def test_transformers_renders_the_export_alike(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for tools in (None, [TOOL]):
        theirs = tokenizer.apply_chat_template(TALK, tools=tools, tokenize=False, add_generation_prompt=True)
        assert theirs == render_chat(CHAT_TEMPLATE, TALK, tools=tools)


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
def test_llama_cpp_renders_the_export_alike(gguf: Path) -> None:
    with llama_cpp.LlamaCpp(gguf) as server:
        plain = [message for message in TALK if message["role"] != "tool" and not message.get("tool_calls")]
        answer = server.request("/apply-template", {"messages": plain})
        assert answer["prompt"] == render_chat(CHAT_TEMPLATE, plain)
        body = {"messages": TALK[:2], "tools": [TOOL]}
        assert server.request("/apply-template", body)["prompt"].count('"name": "look_up"') == 1


@pytest.mark.parametrize("leave", [KeyboardInterrupt, GeneratorExit])
def test_of_an_answer_that_is_broken_off_what_was_heard_is_kept(leave: type[BaseException]) -> None:
    class Speaker:
        name = "any"

        def answer(self, messages: Sequence[Message], **_: object) -> Iterator[str]:
            yield "one "
            yield "two "
            if leave is KeyboardInterrupt:
                raise KeyboardInterrupt
            yield "three"

    talk = Conversation(Speaker(), None)
    said = talk.say("count")
    heard = [next(said), next(said)]
    if leave is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            next(said)
    else:
        said.close()  # type: ignore[attr-defined]
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(heard)}


def test_a_user_cannot_write_special_tokens(model: Model) -> None:
    tokenizer = model.require_tokenizer()
    ids = chat_ids(tokenizer, CHAT_TEMPLATE, TALK)
    assert tokenizer.decode(ids) == render_chat(CHAT_TEMPLATE, TALK)
    written = render_chat(CHAT_TEMPLATE, TALK).count("<|im_end|>")
    assert ids.count(tokenizer.im_end_id) == written - 1
    assert ids[0] == tokenizer.im_start_id


def test_a_template_that_refuses(model: Model) -> None:
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('users first') }}{% endif %}x"
    with pytest.raises(MifyError, match="users first"):
        chat_ids(model.require_tokenizer(), template, TALK)
    assert chat_ids(model.require_tokenizer(), template, TALK[1:]) == model.require_tokenizer().encode("x")


class Parrot:
    """Repeats, and fails on demand."""

    name = "parrot"

    def answer(
        self, messages: Sequence[Message], *, max_new_tokens: int, temperature: float, seed: int
    ) -> Iterator[str]:
        if messages[-1]["content"] == "fail":
            raise MifyError("no", "again")
        yield from (f"{len(messages)}:", messages[-1]["content"])


def test_a_conversation_remembers() -> None:
    talk = Conversation(Parrot(), "s")
    assert "".join(talk.say("one")) == "2:one"
    with pytest.raises(MifyError):
        list(talk.say("fail"))
    assert "".join(talk.say("two")) == "4:two"
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "s"}]


def test_mify_answers_and_ends_at_the_models_own_end(model: Model) -> None:
    talk = Conversation(ModelSpeaker(model), None, max_new_tokens=8)
    assert "".join(talk.say("hello")) == "".join(Conversation(ModelSpeaker(model), None, max_new_tokens=8).say("hello"))
    assert "<|im_" not in talk.messages[-1]["content"]


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
def test_the_command_talks(gguf: Path) -> None:
    options = ["--max-new-tokens", "6", "--threads", "1", "--system", "Be brief."]
    done = CliRunner().invoke(app, ["chat", str(gguf), *options], input="hello\n/reset\n/help\nhello\n/exit\n")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if "/reset forgets" not in line]
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_who_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="does not exist"), open_speaker(str(tmp_path / "none")):
        pass
    with pytest.raises(MifyError, match="by name"), open_speaker("http://127.0.0.1:9/v1"):
        pass
    with pytest.raises(MifyError, match="'vim' is unknown"), open_speaker("x", engine="vim"):
        pass
    with (
        open_speaker("http://127.0.0.1:9/v1", endpoint_model="m") as speaker,
        pytest.raises(MifyError, match="does not answer"),
    ):
        list(speaker.answer([{"role": "user", "content": "x"}], max_new_tokens=1, temperature=0, seed=0))
