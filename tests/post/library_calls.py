"""Conversations with one function call each, made from the signatures of Python's own library."""

from __future__ import annotations

import importlib
import inspect
import json
import random
from typing import Any

from mify.post.chat import Conversation

MODULES = (
    "base64", "bisect", "calendar", "colorsys", "difflib", "fnmatch", "glob", "heapq", "html", "json", "locale", "math",
    "operator", "os.path", "random", "secrets", "shlex", "shutil", "statistics", "string", "tempfile", "textwrap",
    "time", "tokenize", "urllib.parse", "uuid", "zlib",
)  # fmt: skip
WORDS = ("apple", "river", "notes.txt", "blue", "hello world", "data", "Rome", "key", "a-b-c", "main.py")


def library_calls(seed: int = 0) -> list[Conversation]:
    """A conversation for every function with one to four named parameters, in an order drawn by `seed`."""
    draw = random.Random(seed)
    found = []
    for module in MODULES:
        for name, function in sorted(vars(importlib.import_module(module)).items()):
            if name.startswith("_") or not inspect.isroutine(function) or not inspect.getdoc(function):
                continue
            try:
                parameters = list(inspect.signature(function).parameters.values())
            except ValueError:
                continue
            plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
            if plain and 1 <= len(parameters) <= 4:
                found.append(_conversation(f"{module}.{name}", inspect.getdoc(function) or "", parameters, draw))
    draw.shuffle(found)
    return found


def _conversation(name: str, doc: str, parameters: list[inspect.Parameter], draw: random.Random) -> Conversation:
    properties: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for parameter in parameters:
        kind, value = _typed(parameter, draw)
        properties[parameter.name] = {"type": kind}
        values[parameter.name] = value
    said = ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
    schema = {"type": "object", "properties": properties, "required": list(values)}
    function = {"name": name, "description": doc.split("\n")[0][:60], "parameters": schema}
    asked = draw.choice(("Use {} with {}.", "Please call {}: {}.", "I need {} for {}.", "Run {}, {}."))
    call = {"type": "function", "function": {"name": name, "arguments": values}}
    return Conversation.from_dict({
        "messages": [
            {"role": "user", "content": asked.format(name.rpartition(".")[2], said)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": function}],
    })  # fmt: skip


def _typed(parameter: inspect.Parameter, draw: random.Random) -> tuple[str, Any]:
    if isinstance(parameter.default, bool):
        return "boolean", draw.choice((True, False))
    if isinstance(parameter.default, int) or parameter.name in ("n", "k", "i", "x", "y", "width", "a", "b"):
        return "integer", draw.randint(0, 99)
    if isinstance(parameter.default, float):
        return "number", draw.randint(0, 99) / 10
    return "string", draw.choice(WORDS)
