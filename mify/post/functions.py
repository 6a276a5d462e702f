"""One JSON schema for functions and their calls: `function_schema.json`, beside this file.

A function is what OpenAI's clients send, {"type": "function", "function": {"name", "description", "parameters"}}, its
parameters a JSON schema (draft 2020-12) of an object; a call is {"name", "arguments"}, and its arguments have to
satisfy that schema. Nothing is fetched: a `$ref` to another document is an error.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mify.files import read_json
from mify.post.chat import BadConversation, Conversation, ToolCall

SCHEMA_FILE = Path(__file__).parent / "function_schema.json"


def check_functions(conversation: Conversation) -> None:
    """Raises BadConversation: a function that is none, two of one name, a call of another or with other arguments.

    Where no functions are listed a call can only be held to the form of one.
    """
    functions = {}
    for tool in conversation.tools:
        check_tool(tool)
        name = tool["function"]["name"]
        if name in functions:
            raise BadConversation("duplicate_tool", f"{name} is listed twice")
        functions[name] = tool
    for place, message in enumerate(conversation.messages):
        for call in message.tool_calls:
            check_call(call, functions if conversation.tools else None, f"message {place}")


def check_tool(tool: dict[str, Any]) -> None:
    """Raises BadConversation (bad_tool) where `tool` is no function by the schema."""
    problem = _tool_problem(_canonical(tool))
    if problem:
        raise BadConversation("bad_tool", problem)


def check_call(call: ToolCall, functions: dict[str, dict[str, Any]] | None, where: str) -> None:
    """Raises BadConversation: unknown_function, or arguments_do_not_match.

    Args:
        functions: by name; None where nothing is known of them.
    """
    if not _validator("call").is_valid({"name": call.name, "arguments": call.arguments}):
        raise BadConversation("bad_tool_call", f"{where} calls {call.name!r}, which is no function's name")
    if functions is None:
        return
    if call.name not in functions:
        raise BadConversation("unknown_function", f"{where} calls {call.name}, which is not listed")
    parameters = functions[call.name]["function"].get("parameters", {"type": "object"})
    problem = _first_problem(_arguments_validator(_canonical(parameters)), call.arguments)
    if problem:
        raise BadConversation("arguments_do_not_match", f"{where} calls {call.name}: {problem}")


@cache
def _validator(part: str) -> Any:
    """The validator of a definition of the schema."""
    schema = read_json(SCHEMA_FILE)
    return _make_validator({"$schema": schema["$schema"], "$ref": f"#/$defs/{part}", "$defs": schema["$defs"]})


@lru_cache(maxsize=4096)
def _tool_problem(tool: str) -> str | None:
    return _first_problem(_validator("tool"), json.loads(tool))


@lru_cache(maxsize=4096)
def _arguments_validator(parameters: str) -> Any:
    return _make_validator(json.loads(parameters))


def _make_validator(schema: Any) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema_specifications import REGISTRY

    # By default it would fetch what a `$ref` names.
    return Draft202012Validator(schema, registry=REGISTRY)


def _first_problem(validator: Any, value: Any) -> str | None:
    """What is wrong with `value`, the deepest cause first; None where nothing is."""
    import re

    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as found:
        return f"its schema refers to {found.ref}, which is not in it"
    except re.error as found:
        return f"its schema holds a pattern that is none ({found})"
    except RecursionError:
        return "its schema refers to itself without end"
    if error is None:
        return None
    path = "/".join(map(str, error.absolute_path))
    message = error.message if len(error.message) <= 200 else error.message[:197] + "…"
    return f"{path}: {message}" if path else message


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
