"""What the readers and writers of all formats share."""

from __future__ import annotations

from typing import Any

from mify.post.chat import BadConversation, Conversation, ToolCall, parse_json

_NAMES = ("id", "source", "category")


def take_names(row: dict[str, Any]) -> dict[str, str]:
    """Takes id, source and category out of `row`, as texts; what is neither text nor number stays in it."""
    plain = [key for key in _NAMES if isinstance(row.get(key), (str, int)) and not isinstance(row[key], bool)]
    return {key: str(row.pop(key)) for key in plain}


def names_of(conversation: Conversation) -> dict[str, str]:
    """Those of id, source and category that are known."""
    return {key: value for key in _NAMES if (value := getattr(conversation, key))}


def json_value(value: Any, reason: str) -> Any:
    """`value`, or what the JSON text `value` says."""
    return parse_json(value, reason) if isinstance(value, str) else value


def call_of(value: Any) -> ToolCall:
    """The call {"name", "arguments"}, its arguments an object or the JSON text of one.

    Raises:
        BadConversation: bad_tool_call.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadConversation("bad_tool_call", f"{str(value)[:60]!r} has no name")
    arguments = json_value(value.get("arguments", value.get("parameters", {})), "bad_tool_call")
    if not isinstance(arguments, dict):
        raise BadConversation("bad_tool_call", f"the arguments of {value['name']} are no object")
    return ToolCall(value["name"], arguments)
