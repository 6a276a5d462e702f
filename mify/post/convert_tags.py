"""Conversations from ShareGPT's rows, calls as Hermes or as LLaMA-Factory writes them, and from ChatML texts."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from mify.post.chat import BadConversation, Conversation, Message, parse_json
from mify.post.convert_rows import call_of, json_value, names_of, take_names

_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_CANONICAL = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
_CALL_ROLES = ("function_call", "tool_call")
_THINK = re.compile(r"\A\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)
_CALL = re.compile(r"\s*<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_HERMES_SYSTEM = (
    "You can call functions. Their signatures stand within <tools></tools>: <tools> {tools} </tools> For each call, "
    "answer with a JSON object with the function's name and arguments within <tool_call></tool_call>:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>'
)


def read_sharegpt(row: dict[str, Any]) -> Conversation:
    """{"conversations": [{"from", "value"}, …]}, with `system` and `tools` (a JSON text) where they are given.

    <think>, <tool_call> and <tool_response> in the values become reasoning, calls and results. A system message that
    lists functions in <tools> goes into `extra`, since the chat template lists them itself.
    """
    row = dict(row)
    turns, system = row.pop("conversations", None), row.pop("system", None)
    if not isinstance(turns, list) or not turns:
        raise BadConversation("no_messages", "there is no list of conversations in it")
    tools = _tools(json_value(row.pop("tools", None) or [], "bad_tool"))
    messages: list[Message] = []
    if isinstance(system, str) and system:
        messages.append(Message("system", system, extra={"key": "system"}))
    for turn in turns:
        messages += _messages(turn)
    if messages[0].role == "system" and "<tools>" in messages[0].content:
        row["system_text"] = messages.pop(0).content
        if not tools:
            tools = _tools(_listed(row["system_text"]))
    names = take_names(row)
    return Conversation(tuple(messages), tuple(tools), **names, extra=row)


def write_sharegpt(conversation: Conversation, *, tags: bool = False) -> dict[str, Any]:
    """ShareGPT's row: calls as turns of `function_call`, or, with `tags`, as Hermes writes them."""
    extra = dict(conversation.extra)
    row: dict[str, Any] = dict(names_of(conversation))
    text = extra.pop("system_text", None)
    turns: list[dict[str, Any]] = []
    if text is not None or (tags and conversation.tools):
        listed = json.dumps(list(conversation.tools), ensure_ascii=False)
        turns.append({"from": "system", "value": text or _HERMES_SYSTEM.replace("{tools}", listed)})
    for message in conversation.messages:
        if message.extra.get("key") == "system":
            row["system"] = message.content
            continue
        for turn in _turns(message, tags):
            if tags and message.role == "tool" and turns and turns[-1] == turn | {"value": turns[-1]["value"]}:
                turns[-1]["value"] += "\n" + turn["value"]  # results of one turn's calls stand together
            else:
                turns.append(turn)
    row["conversations"] = turns
    if conversation.tools:
        row["tools"] = json.dumps(list(conversation.tools), ensure_ascii=False)
    return row | extra


def write_hermes(conversation: Conversation) -> dict[str, Any]:
    return write_sharegpt(conversation, tags=True)


def read_chatml(row: dict[str, Any]) -> Conversation:
    """{"text": "<|im_start|>role\\n…<|im_end|>\\n…"}, as our template or Qwen's writes it."""
    row = dict(row)
    text = row.pop("text", None)
    parts = re.findall(r"<\|im_start\|>(\w+)\n?(.*?)<\|im_end\|>\n?", text, re.DOTALL) if isinstance(text, str) else []
    if not parts or "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in parts).strip() != text.strip():
        raise BadConversation("no_messages", "text is no sequence of <|im_start|>role … <|im_end|>")
    messages: list[Message] = []
    tools: list[dict[str, Any]] = []
    for role, said in parts:
        if role == "system" and "\n</tools>" in said:
            head, found, _ = said.partition("# Tools\n\n")
            tools = _tools(_listed(said))
            if found and head:
                messages.append(Message("system", head.removesuffix("\n\n")))
            continue
        answers = role == "user" and said.startswith("<tool_response>")
        messages += _messages({"from": "tool" if answers else _CANONICAL.get(role, role), "value": said})
    names = take_names(row)
    return Conversation(tuple(messages), tuple(tools), **names, extra=row)


def write_chatml(conversation: Conversation) -> dict[str, Any]:
    """The text that our chat template makes of it."""
    from mify.export.chat_template import CHAT_TEMPLATE, render_chat

    plain = [message.to_dict() for message in conversation.messages]
    text = render_chat(CHAT_TEMPLATE, plain, tools=list(conversation.tools) or None, add_generation_prompt=False)
    names = names_of(conversation)
    return {"text": text} | names | conversation.extra


def _messages(turn: Any) -> list[Message]:
    """What one turn says; several results may stand in one."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise BadConversation("bad_message", f"{str(turn)[:60]!r} has no from and value")
    rest = dict(turn)
    name, value = rest.pop("from", None), rest.pop("value")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadConversation("unknown_role", f"{name!r} is none of {', '.join(_ROLES)}")
    extra = rest if name in (_CANONICAL[role], "function_call") else rest | {"from": name}
    if name in _CALL_ROLES:
        found = parse_json(value, "bad_tool_call")
        return [Message("assistant", "", "", tuple(call_of(c) for c in _as_list(found)), extra=extra)]
    if role == "tool" and "<tool_response>" in value:
        results = _RESPONSE.findall(value)
        if _RESPONSE.sub("", value).strip():
            raise BadConversation("bad_message", "there is text beside the <tool_response>")
        return [Message("tool", result, extra=extra) for result in results]
    if role != "assistant":
        return [Message(role, value, extra=extra)]  # type: ignore[arg-type]
    thought = _THINK.match(value)
    said = value[thought.end() :] if thought else value
    calls = tuple(call_of(_loose_json(text)) for text in _CALL.findall(said))
    if calls:
        before, *behind = _CALL.split(said)[::2]
        if any(text.strip() for text in behind):
            raise BadConversation("text_behind_call", "there is text behind a <tool_call>")
        said = before
    return [Message("assistant", said, thought.group(1) if thought else "", calls, extra=extra)]


def _turns(message: Message, tags: bool) -> list[dict[str, Any]]:
    rest = dict(message.extra)
    name = rest.pop("from", _CANONICAL[message.role])
    thought = f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""
    calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    if tags:
        value = thought + message.content
        for call in calls:
            value += ("\n" if value else "") + f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
        if message.role == "tool":
            value = f"<tool_response>\n{message.content}\n</tool_response>"
        return [{"from": name, "value": value} | rest]
    turns: list[dict[str, Any]] = []
    if calls and name not in _CALL_ROLES and (thought or message.content):
        raise BadConversation("not_expressible", "sharegpt's rows have text or calls in a turn, not both")
    if calls:
        value = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
        name = name if name in _CALL_ROLES else "function_call"
        turns.append({"from": name, "value": value} | rest)
    else:
        turns.append({"from": name, "value": thought + message.content} | rest)
    return turns


def _listed(text: str) -> list[Any]:
    """The functions in <tools>: a JSON list, or one after the other."""
    bodies = [body for body in _TOOLS.findall(text) if body.strip()]
    if not bodies:
        raise BadConversation("bad_tool", "there are no functions in <tools>")
    body, decoder, place, found = bodies[0], json.JSONDecoder(), 0, []
    while place < len(body):
        if body[place].isspace() or body[place] == ",":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(body, place)
        except ValueError as error:
            raise BadConversation("bad_tool", f"<tools> holds no JSON ({error})") from None
        found += _as_list(value)
    return found


def _tools(values: Any) -> list[dict[str, Any]]:
    found = []
    for value in _as_list(values):
        if not isinstance(value, dict):
            raise BadConversation("bad_tool", f"{str(value)[:60]!r} is no function")
        found.append(value if "function" in value else {"type": "function", "function": value})
    return found


def _loose_json(text: str) -> Any:
    """JSON, or a Python literal, which some of Hermes' rows hold."""
    try:
        return parse_json(text, "bad_tool_call")
    except BadConversation:
        try:
            return json.loads(json.dumps(ast.literal_eval(text)))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise BadConversation("bad_tool_call", f"{text[:60]!r} is no JSON") from None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
