"""Function calls in a model's answer: `[f(a=1), g(b="x")]` as BFCL asks for them, or JSON in <tool_call> tags."""

from __future__ import annotations

import ast
import json
import operator
import re
from typing import Any

from mify.eval.bfcl_check import Call

_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MAX_POWER = 64


def parse_calls(answer: str, language: str = "python") -> list[Call]:
    """The calls of an answer.

    Args:
        language: of the functions: values of Java and JavaScript functions stay source text.

    Raises:
        ValueError: there is no list of calls in it.
    """
    if "<tool_call>" in answer:
        return [_json_call(text) for text in _TOOL_CALL.findall(answer)]
    text = answer.strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    if language != "python":
        return [_source_call(text[1:-1])]
    try:
        body = ast.parse(text.strip().strip("'"), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no list of calls ({type(error).__name__})") from None
    elements = body.elts if isinstance(body, (ast.List, ast.Tuple, ast.Set)) else [body]
    return [_call(element) for element in elements]


def _json_call(text: str) -> Call:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a tool call is no JSON ({error})") from None
    arguments = value.get("arguments", value.get("parameters")) if isinstance(value, dict) else None
    if not isinstance(arguments, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a tool call has no name and arguments")
    return {value["name"]: arguments}


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("not a list of calls")
    parts = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return {".".join(reversed(parts)): {str(word.arg): _value(word.value) for word in node.keywords}}


def _value(node: ast.expr | None) -> Any:
    """A literal; a name or a call without keywords as its text."""
    match node:
        case ast.Constant(value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=ast.Constant(int() | float() as value)):
            return -value
        case ast.List(elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys, values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(name):
            return name
        case ast.Call():
            return _call(node) if node.keywords else ast.unparse(node)
        case ast.Subscript():
            return ast.unparse(node)
        case ast.BinOp(left, sign, right):
            return _arithmetic(_value(left), type(sign), _value(right))
    raise ValueError(f"a value that is no literal: {type(node).__name__}")


def _arithmetic(left: Any, sign: type[ast.operator], right: Any) -> Any:
    numbers = all(isinstance(value, (int, float)) for value in (left, right))
    if not numbers or sign not in _ARITHMETIC or (sign is ast.Pow and abs(right) > _MAX_POWER):
        raise ValueError("arithmetic that is none")
    try:
        return _ARITHMETIC[sign](left, right)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _source_call(text: str) -> Call:
    """`name(parameter=source, …)` with the values' source text; quotes around a whole value are taken off."""
    found = re.fullmatch(r"\s*([\w.$]+)\s*\((.*)\)\s*;?\s*", text, re.DOTALL)
    if found is None:
        raise ValueError("not a call")
    arguments: dict[str, Any] = {}
    for part in _split(found.group(2)):
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not re.fullmatch(r"[\w$]+", name):
            raise ValueError(f"{part.strip()[:40]!r} is no named argument")
        if name in arguments:
            raise ValueError(f"{name} is given twice")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        arguments[name] = value
    return {found.group(1): arguments}


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside of brackets and quotes."""
    parts, start, depth, quote, index = [], 0, 0, "", 0
    while index < len(text):
        character = text[index]
        if quote:
            if character == "\\":
                index += 1
            elif character == quote:
                quote = ""
        elif character in "\"'`":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    if quote or depth:
        raise ValueError("brackets or quotes that do not close")
    return [part for part in [*parts, text[start:]] if part.strip()]
