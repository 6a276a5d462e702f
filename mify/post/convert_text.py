"""Conversations from OpenAI's rows and from plain instructions (Alpaca, Magicoder), and back."""

from __future__ import annotations

import json
from typing import Any

from mify.post.chat import BadConversation, Conversation, Message
from mify.post.convert_rows import names_of, take_names


def read_openai(row: dict[str, Any]) -> Conversation:
    """{"messages", "tools"}, arguments as JSON texts; also older `functions`, `function_call` and role `function`."""
    row = dict(row)
    if functions := row.pop("functions", None):
        row["tools"] = [{"type": "function", "function": function} for function in functions]
    if isinstance(row.get("messages"), list):
        row["messages"] = [_modern(message) for message in row["messages"]]
    return Conversation.from_dict(row)


def write_openai(conversation: Conversation) -> dict[str, Any]:
    """As OpenAI's API and fine-tuning files take it."""
    row = conversation.to_dict()
    del row["format"], row["version"]
    for message in row["messages"]:
        if not message["content"] and message.get("tool_calls"):
            message["content"] = None
        for call in message.get("tool_calls", ()):
            call["function"] = {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            }
    return row


def _modern(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    message = dict(message)
    if message.get("role") == "function":
        message["role"] = "tool"
    called = message.pop("function_call", None)
    if isinstance(called, dict):
        message["tool_calls"] = [{"type": "function", "function": called}]
    return message


def read_alpaca(row: dict[str, Any]) -> Conversation:
    """{"instruction", "input", "output"}, with `system` and `history` ([[question, answer], …]) where given."""
    row = dict(row)
    instruction, given, output = (row.pop(key, "") or "" for key in ("instruction", "input", "output"))
    system, history = row.pop("system", "") or "", row.pop("history", None) or []
    _texts(instruction=instruction, input=given, output=output, system=system)
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadConversation("bad_message", "history is no list of [question, answer]")
    turns = [(question, answer) for question, answer in history]
    turns.append((f"{instruction}\n\n{given}" if given else instruction, output))
    extra = row | ({"input": given} if given else {})
    return _alternating(system, turns, extra)


def write_alpaca(conversation: Conversation) -> dict[str, Any]:
    """Raises BadConversation (not_expressible): calls, tools, reasoning, an answer missing."""
    system, turns = _pairs(conversation, "alpaca")
    extra = dict(conversation.extra)
    given = extra.pop("input", "")
    question, output = turns[-1]
    if given and not question.endswith(f"\n\n{given}"):
        given = ""
    row = {"instruction": question.removesuffix(f"\n\n{given}") if given else question, "input": given}
    row["output"] = output
    if system:
        row["system"] = system
    if turns[:-1]:
        row["history"] = [list(turn) for turn in turns[:-1]]
    return row | names_of(conversation) | extra


_MAGICODER = (("problem", "solution"), ("instruction", "response"))


def read_magicoder(row: dict[str, Any]) -> Conversation:
    """OSS-Instruct's {"problem", "solution", "lang", "seed", …} and Evol-Instruct's {"instruction", "response"}."""
    row = dict(row)
    keys = next((keys for keys in _MAGICODER if all(key in row for key in keys)), None)
    if keys is None:
        raise BadConversation("no_messages", "there is neither problem and solution nor instruction and response in it")
    question, answer = row.pop(keys[0]), row.pop(keys[1])
    _texts(**{keys[0]: question, keys[1]: answer})
    extra = row | ({"keys": list(keys)} if keys != _MAGICODER[0] else {})
    return _alternating("", [(question, answer)], extra)


def write_magicoder(conversation: Conversation) -> dict[str, Any]:
    """Raises BadConversation (not_expressible): more than one question and answer."""
    system, turns = _pairs(conversation, "magicoder")
    if system or len(turns) != 1:
        raise BadConversation("not_expressible", "magicoder's rows hold one question and its answer")
    extra = dict(conversation.extra)
    first, second = extra.pop("keys", _MAGICODER[0])
    return {first: turns[0][0], second: turns[0][1]} | names_of(conversation) | extra


def _texts(**values: Any) -> None:
    for key, value in values.items():
        if not isinstance(value, str):
            raise BadConversation("content_not_text", f"{key} is {type(value).__name__}, not text")


def _alternating(system: str, turns: list[tuple[str, str]], extra: dict[str, Any]) -> Conversation:
    messages = [Message("system", system)] if system else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    names = take_names(extra)
    return Conversation(tuple(messages), (), **names, extra=extra)


def _pairs(conversation: Conversation, name: str) -> tuple[str, list[tuple[str, str]]]:
    """The system message and (question, answer) of every turn. Raises BadConversation where there is more than that."""
    messages = list(conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    plain = all(not message.tool_calls and not message.reasoning for message in messages)
    if conversation.tools or not plain or roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise BadConversation("not_expressible", f"{name}'s rows hold questions and answers alone")
    return system, [(q.content, a.content) for q, a in zip(messages[::2], messages[1::2], strict=True)]
