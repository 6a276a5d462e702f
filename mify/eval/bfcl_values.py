"""Java and JavaScript literals as BFCL reads them: values come as source text, and become Python's.

What cannot be read stays text, which then equals no number. Read as bfcl_eval's type converters read (their regular
expressions are the definition: a long needs its `L`, a float its `f`).
"""

from __future__ import annotations

import re
from typing import Any

JAVA_TYPES: dict[str, type] = {
    "byte": int, "short": int, "integer": int, "float": float, "double": float, "long": int, "boolean": bool,
    "char": str, "Array": list, "ArrayList": list, "HashMap": dict, "String": str, "any": str,
}  # fmt: skip
JAVASCRIPT_TYPES: dict[str, type] = {
    "String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict, "array": list,
    "any": str,
}  # fmt: skip

_INTEGER = re.compile(r"-?\d+")
_REAL = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_LONG = re.compile(r"-?\d+[lL]")
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]")


def java_value(text: str, kind: str, nested: str | None = None) -> Any:
    """The value of a Java expression of the given type; `nested` is the element type of arrays and lists."""
    if kind in ("byte", "short", "integer"):
        return int(text) if _INTEGER.fullmatch(text) else text
    if kind == "long":
        return int(text[:-1]) if _LONG.fullmatch(text) else text
    if kind == "float":
        return float(text[:-1]) if _FLOAT.fullmatch(text) else text
    if kind == "double":
        return float(text) if _REAL.fullmatch(text) else text
    if kind == "boolean":
        return text == "true" if text in ("true", "false") else text
    if kind == "ArrayList":
        return _java_list(text, nested)
    if kind == "Array":
        found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
        if found is None:
            return text
        return [_java_element(part.strip(), nested) for part in found.group(1).split(",") if part.strip()]
    if kind == "HashMap":
        return _java_map(text)
    return text


def _java_list(text: str, nested: str | None) -> Any:
    def element(part: str) -> Any:
        return part[1:-1] if nested in ("char", "String") else _java_element(part, nested)

    found = re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text)
    if found is not None:
        return [element(part.strip()) for part in found.group(1).split(",")]
    found = re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL)
    if found is not None:
        return [element(part.strip()) for part in re.findall(r"add\((.+?)\)", found.group(1))]
    return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text


def _java_map(text: str) -> Any:
    found = re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.DOTALL)
    if found is not None:
        pairs = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", found.group(1))
        return {key: _java_literal(value.strip()) for key, value in pairs}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


def _java_element(text: str, nested: str | None) -> Any:
    return java_value(text, nested) if nested else _java_literal(text)


def _java_literal(text: str) -> Any:
    """A literal whose type is not known."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _LONG.fullmatch(text):
        return int(text[:-1])
    if _FLOAT.fullmatch(text):
        return float(text[:-1])
    return _number(text)


def javascript_value(text: str, kind: str, nested: str | None = None) -> Any:
    """The value of a JavaScript expression of the given type; `nested` is the element type of arrays."""
    if kind == "String":
        return text[1:-1] if _quoted(text) else text
    if kind == "integer":
        return int(text) if _INTEGER.fullmatch(text) else text
    if kind == "float":
        return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text
    if kind == "Bigint":
        return int(text[:-1]) if re.fullmatch(r"-?\d+n", text) else text
    if kind == "Boolean":
        return text == "true" if text in ("true", "false") else text
    if kind == "array":
        return _javascript_array(text.strip(), nested)
    if kind == "dict":
        return _javascript_object(text.strip())
    return text


def _javascript_array(text: str, nested: str | None) -> Any:
    rows = re.match(
        r"\[\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\]|\bnew\s+Array\(\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\)", text
    )  # fmt: skip
    if rows is not None:
        inner = [part.strip() for part in re.findall(r"\[(.*?)\]", rows.group(0))]
        inner[0] = inner[0].removeprefix("[")
        return [[_javascript_literal(part.strip()) for part in row.split(",")] for row in inner]
    found = re.match(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)", text)
    if found is None:
        return text
    parts = [part.strip() for part in ((found.group(1) or found.group(2) or "").strip()).split(",")]
    if parts == [""]:
        return []
    if nested is None:
        return [_javascript_literal(part) for part in parts]
    return [javascript_value(part, nested) for part in parts]


def _javascript_object(text: str) -> Any:
    if text == "{}":
        return {}
    found = re.match(r"\{(.*?)\}", text)
    if found is None:
        return text
    values: dict[str, Any] = {}
    for key, value in re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", found.group(1)):
        value = value.strip()
        if value.startswith("[") and value.endswith("]"):
            read = _javascript_array(value, None)
        elif value.startswith("{") and value.endswith("}"):
            read = _javascript_object(value)
        else:
            read = _javascript_literal(value.strip("'\""))
        values[key.strip().strip("'\"")] = read
    return values


def _javascript_literal(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _quoted(text) else _number(text)


def _quoted(text: str) -> bool:
    return any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
