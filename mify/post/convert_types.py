"""Types of functions' parameters as other formats write them, to JSON schema and back without loss.

What a JSON schema cannot say (a tuple, an `ArrayList`, `List[int], optional`) stays beside it under `x-type`, which
validators pass over.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

X_TYPE = "x-type"

_BFCL = {
    "dict": "object", "float": "number", "any": None, "": None, "tuple": "array", "String": "string", "Array": "array",
    "ArrayList": "array", "HashMap": "object", "Hashtable": "object", "Boolean": "boolean", "long": "integer",
    "double": "number", "char": "string", "byte": "integer", "short": "integer", "Bigint": "integer",
    "Integer": "integer", "Float": "number", "Double": "number", "Long": "integer", "Set": "array", "Queue": "array",
    "Stack": "array",
}  # fmt: skip
_BFCL_BACK = {"object": "dict", "number": "float"}
_JSON_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")


def from_bfcl(schema: dict[str, Any]) -> dict[str, Any]:
    """BFCL's parameters (types of Python, Java and JavaScript) as a JSON schema."""

    def own(kind: str) -> dict[str, Any]:
        if kind in _JSON_TYPES and kind not in _BFCL_BACK:
            return {"type": kind}
        mapped = _BFCL.get(kind, kind if kind in _JSON_TYPES else None)
        typed = {"type": mapped} if mapped is not None else {}
        return typed if _BFCL_BACK.get(mapped or "") == kind else typed | {X_TYPE: kind}

    return _walk(schema, lambda node: _replace(node, "type", own))


def to_bfcl(schema: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `from_bfcl`; of a schema from elsewhere, its nearest type."""

    def back(node: dict[str, Any]) -> dict[str, Any]:
        if X_TYPE in node:
            rest = {key: value for key, value in node.items() if key != X_TYPE}
            if "type" in rest:
                return {key: node[X_TYPE] if key == "type" else value for key, value in rest.items()}
            return {"type": node[X_TYPE]} | rest
        return _replace(node, "type", lambda kind: {"type": _BFCL_BACK.get(kind, kind)})

    return _walk(schema, back)


def from_python(kind: str) -> dict[str, Any]:
    """The JSON schema of a Python type as a text: `List[int]`, `Dict[str, Any]`, `Optional[str]`, …; {} for others."""
    try:
        return _python_schema(ast.parse(kind.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return {}


def to_python(schema: dict[str, Any]) -> str:
    """A Python type for a JSON schema."""
    kind = schema.get("type")
    if kind == "array" and isinstance(schema.get("items"), dict) and schema["items"].get("type"):
        return f"List[{to_python(schema['items'])}]"
    return _TO_PYTHON.get(kind, "Any") if isinstance(kind, str) else "Any"


_PLAIN: dict[str, dict[str, Any]] = {
    "str": {"type": "string"}, "string": {"type": "string"}, "int": {"type": "integer"}, "integer": {"type": "integer"},
    "float": {"type": "number"}, "number": {"type": "number"}, "bool": {"type": "boolean"},
    "boolean": {"type": "boolean"}, "list": {"type": "array"}, "array": {"type": "array"}, "tuple": {"type": "array"},
    "set": {"type": "array"}, "dict": {"type": "object"}, "object": {"type": "object"}, "None": {"type": "null"},
}  # fmt: skip
_TO_PYTHON = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
}


def _python_schema(node: ast.expr) -> dict[str, Any]:
    match node:
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Name(name):
            return dict(_PLAIN.get(name if name in _PLAIN else name.lower(), {}))
        case ast.Attribute(attr=name):
            return dict(_PLAIN.get(name.lower(), {}))
        case ast.BinOp(left, ast.BitOr(), right):
            return _any_of([_python_schema(left), _python_schema(right)])
        case ast.Subscript(value, inside):
            name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            schemas = [_python_schema(part) for part in parts if not isinstance(part, ast.List)]
            if name == "Optional":
                return _any_of([*schemas, {"type": "null"}])
            if name == "Union":
                return _any_of(schemas)
            if name.lower() in ("list", "set", "sequence", "iterable") and len(schemas) == 1:
                return {"type": "array"} | ({"items": schemas[0]} if schemas[0] else {})
            return dict(_PLAIN.get(name.lower(), {}))
    return {}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return {"anyOf": schemas} if all(schemas) else {}


def _walk(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """`schema` with `change` made of it and of every schema inside, from the inside out."""
    inner: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            inner[key] = {n: _walk(v, change) if isinstance(v, dict) else v for n, v in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            inner[key] = _walk(value, change)
        else:
            inner[key] = value
    return change(inner)


def _replace(node: dict[str, Any], key: str, make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """`node` with what `make` gives in the place of `key`, where that is a text."""
    if not isinstance(node.get(key), str):
        return node
    replaced: dict[str, Any] = {}
    for name, value in node.items():
        replaced |= make(value) if name == key else {name: value}
    return replaced
