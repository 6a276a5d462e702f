"""Conversations from rows of function-calling data, xLAM, Glaive and BFCL, and back."""

from __future__ import annotations

import json
import re
from typing import Any

from mify.post.chat import BadConversation, Conversation, Message, ToolCall, parse_json
from mify.post.convert_rows import call_of, json_value, names_of, take_names
from mify.post.convert_types import X_TYPE, from_bfcl, from_python, to_bfcl, to_python


def read_xlam(row: dict[str, Any]) -> Conversation:
    """{"query", "tools", "answers"}: two JSON texts; parameters by name, Python types, with `, optional` or not."""
    row = dict(row)
    query = row.pop("query", None)
    tools, answers = (json_value(row.pop(key, "[]"), "bad_tool_call") for key in ("tools", "answers"))
    if not isinstance(query, str):
        raise BadConversation("content_not_text", "query is no text")
    if not isinstance(tools, list) or not isinstance(answers, list):
        raise BadConversation("bad_tool_call", "tools and answers are no lists")
    calls = tuple(call_of(answer) for answer in answers)
    messages = [Message("user", query)] + ([Message("assistant", tool_calls=calls)] if calls else [])
    names = take_names(row)
    return Conversation(tuple(messages), tuple(map(_from_xlam, tools)), **names, extra=row)


def write_xlam(conversation: Conversation) -> dict[str, Any]:
    """Raises BadConversation (not_expressible): more than a question and its calls."""
    query, calls = _question_and_calls(conversation, "xlam")
    tools = [_to_xlam(tool["function"]) for tool in conversation.tools]
    row: dict[str, Any] = names_of(conversation) | {"query": query}
    if conversation.id.isdecimal():
        row["id"] = int(conversation.id)
    row["answers"] = json.dumps([{"name": c.name, "arguments": c.arguments} for c in calls], ensure_ascii=False)
    row["tools"] = json.dumps(tools, ensure_ascii=False)
    return row | conversation.extra


def _from_xlam(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("parameters", {}), dict):
        raise BadConversation("bad_tool", f"{str(value)[:60]!r} is no function")
    properties, required = {}, []
    for name, given in value.get("parameters", {}).items():
        if not isinstance(given, dict) or not isinstance(given.get("type", ""), str):
            raise BadConversation("bad_tool", f"the parameter {name} has no type")
        kind = given.get("type", "")
        optional = re.sub(r",\s*optional\b.*", "", kind)
        properties[name] = {k: v for k, v in given.items() if k != "type"} | from_python(optional)
        if "type" in given:
            properties[name][X_TYPE] = kind
        if optional == kind and not kind.startswith("Optional[") and "default" not in given:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": value | {"parameters": parameters}}


def _to_xlam(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters", {})
    required = parameters.get("required", [])
    given = {}
    for name, schema in parameters.get("properties", {}).items():
        kind = schema.get(X_TYPE)
        made = (
            from_python(re.sub(r",\s*optional\b.*", "", kind)) if kind else schema.keys() & {"type", "items", "anyOf"}
        )
        rest = {key: value for key, value in schema.items() if key not in made and key != X_TYPE}
        optional = "" if name in required or "default" in rest else ", optional"
        given[name] = rest | {"type": kind if kind is not None else to_python(schema) + optional}
    return function | {"parameters": given}


_GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
_TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE): ?")
_FUNCTION_CALL = re.compile(r"<functioncall>\s*(\{.*\})\s*\Z", re.DOTALL)
_QUOTED = re.compile(r'\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*\'(.*)\'\s*\}\Z', re.DOTALL)


def read_glaive(row: dict[str, Any]) -> Conversation:
    """{"system": "SYSTEM: …", "chat": "USER: … ASSISTANT: … <|endoftext|> …"}, calls behind <functioncall>.

    What introduces the functions in the system text goes into `extra`, since the chat template introduces them itself.
    """
    row = dict(row)
    system, chat = row.pop("system", "") or "", row.pop("chat", None)
    if not isinstance(system, str) or not isinstance(chat, str):
        raise BadConversation("content_not_text", "system and chat have to be texts")
    head, tools = _glaive_tools(system)
    messages: list[Message] = []
    if tools:
        if head != _GLAIVE_SYSTEM:
            row["system_text"] = head
    elif head.removeprefix("SYSTEM:").strip():
        messages.append(Message("system", head.removeprefix("SYSTEM:").strip()))
    pieces = _TURN.split(chat)
    if pieces[0].strip() or len(pieces) < 3:
        raise BadConversation("no_messages", "chat does not begin with USER: or ASSISTANT:")
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        said = said.rstrip("\n")
        if speaker == "ASSISTANT":
            messages.append(_glaive_answer(said.rstrip().removesuffix("<|endoftext|>").removesuffix(" ")))
        else:
            messages.append(Message("user" if speaker == "USER" else "tool", said))
    names = take_names(row)
    return Conversation(tuple(messages), tuple(tools), **names, extra=row)


def write_glaive(conversation: Conversation) -> dict[str, Any]:
    """Raises BadConversation (not_expressible): several calls in a turn, reasoning."""
    extra = dict(conversation.extra)
    messages = list(conversation.messages)
    head = extra.pop("system_text", _GLAIVE_SYSTEM if conversation.tools else "SYSTEM: ")
    if messages and messages[0].role == "system":
        text = messages.pop(0).content
        head = f"SYSTEM: {text}\n" if not conversation.tools else f"SYSTEM: {text}\n{head.removeprefix('SYSTEM: ')}"
    listed = [json.dumps(tool["function"], indent=4, ensure_ascii=False) for tool in conversation.tools]
    parts = []
    for message in messages:
        said = message.content
        if len(message.tool_calls) > 1 or message.reasoning:
            raise BadConversation("not_expressible", "glaive's rows have one call in a turn, and no reasoning")
        for call in message.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False).replace("'", "\\'")
            name = json.dumps(call.name, ensure_ascii=False)
            said += ("\n" if said else "") + f'<functioncall> {{"name": {name}, "arguments": \'{arguments}\'}}'
        speaker = {"user": "USER", "assistant": "ASSISTANT", "tool": "FUNCTION RESPONSE"}[message.role]
        parts.append(f"{speaker}: {said}" + (" <|endoftext|>" if message.role == "assistant" else ""))
    names = names_of(conversation)
    system = head + "\n".join(listed) + ("\n" if listed else "")
    return names | {"system": system, "chat": "\n\n\n".join(parts)} | extra


def _glaive_tools(system: str) -> tuple[str, list[dict[str, Any]]]:
    """The text before the functions, and the functions; all of it and none where it lists none."""
    decoder, place, found = json.JSONDecoder(), system.find("{"), []
    head = system[:place] if place >= 0 else system
    while 0 <= place < len(system):
        if system[place].isspace():
            place += 1
            continue
        try:
            function, place = decoder.raw_decode(system, place)
        except ValueError as error:
            raise BadConversation("bad_tool", f"the system text lists a function that is no JSON ({error})") from None
        found.append({"type": "function", "function": function})
    return head, found


def _glaive_answer(said: str) -> Message:
    called = _FUNCTION_CALL.search(said)
    if called is None:
        if "<functioncall>" in said:
            raise BadConversation("bad_tool_call", "there is no object behind <functioncall>, or text behind it")
        return Message("assistant", said)
    quoted = _QUOTED.match(called.group(1))
    if quoted:
        arguments = parse_json(quoted.group(2).replace("\\'", "'"), "bad_tool_call")
        value: Any = {"name": quoted.group(1), "arguments": arguments}
    else:
        value = parse_json(called.group(1), "bad_tool_call")
    return Message("assistant", said[: called.start()].removesuffix("\n"), tool_calls=(call_of(value),))


def read_bfcl(row: dict[str, Any]) -> Conversation:
    """{"question": [[messages]], "function": […], "ground_truth": [{name: {parameter: [allowed values]}}]}.

    The first allowed values make the calls; all of them stay in `extra`. A row without ground_truth is a prompt.
    """
    from mify.eval.bfcl import expected_calls
    from mify.eval.tasks import Item

    row = dict(row)
    question, functions = row.pop("question", None), row.pop("function", None)
    if not isinstance(question, list) or not isinstance(functions, list):
        raise BadConversation("no_messages", "there are no question and function in it")
    if len(question) != 1 or not isinstance(question[0], list):
        raise BadConversation("needs_execution", "a question of several turns has no results of its calls in it")
    messages = [Message.from_dict(message) for message in question[0]]
    tools = []
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
            raise BadConversation("bad_tool", f"{str(function)[:60]!r} is no function with parameters")
        tools.append({"type": "function", "function": function | {"parameters": from_bfcl(function["parameters"])}})
    names = take_names(row)
    expected = row.get("ground_truth")
    if isinstance(expected, list) and expected:
        # As JSON values, whatever language the functions are of.
        item = Item(names.get("id", ""), {"function": functions, "expected": expected, "language": "python"})
        try:
            calls = [ToolCall(name, values) for call in expected_calls(item) for name, values in call.items()]
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadConversation("bad_tool_call", f"ground_truth does not fit the functions ({error!r})") from None
        messages.append(Message("assistant", tool_calls=tuple(calls)))
    return Conversation(tuple(messages), tuple(tools), **names, extra=row)


def write_bfcl(conversation: Conversation) -> dict[str, Any]:
    """Raises BadConversation (not_expressible): results of calls, reasoning, text beside the calls."""
    messages, extra = list(conversation.messages), dict(conversation.extra)
    if messages and messages[-1].role == "assistant" and messages[-1].tool_calls:
        last = messages.pop()
        if last.content or last.reasoning:
            raise BadConversation("not_expressible", "bfcl's answers are calls alone")
        extra.setdefault(
            "ground_truth", [{call.name: {k: [v] for k, v in call.arguments.items()}} for call in last.tool_calls]
        )
    if any(message.tool_calls or message.role == "tool" for message in messages):
        raise BadConversation("not_expressible", "bfcl's rows hold one turn of calls, the last")
    functions = []
    for tool in conversation.tools:
        function = tool["function"]
        functions.append(function | {"parameters": to_bfcl(function.get("parameters", {"type": "object"}))})
    row = {"question": [[message.to_dict() for message in messages]], "function": functions}
    return names_of(conversation) | row | extra


def _question_and_calls(conversation: Conversation, name: str) -> tuple[str, tuple[ToolCall, ...]]:
    roles = [message.role for message in conversation.messages]
    last = conversation.messages[-1]
    if roles not in (["user"], ["user", "assistant"]) or (len(roles) == 2 and (last.content or last.reasoning)):
        raise BadConversation("not_expressible", f"{name}'s rows hold a question and its calls alone")
    return conversation.messages[0].content, last.tool_calls
