"""A tree of frozen dataclasses from nested plain values, with errors that name the key and its nearest neighbour.

What TOML and `--key.sub=value` give is untyped; here every value meets the annotation of its field once, at the door.
Legal annotations: bool, int, float, str, Literal of strings, X | None, tuple[X, ...], dict[str, X], dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mify.errors import MifyError

T = TypeVar("T")


class Raw(str):
    """A value as it was typed on the command line: its type comes from the field it lands in."""

    __slots__ = ()


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from nested `values`; absent keys take their defaults.

    Raises:
        MifyError: an unknown key (with the nearest known one), a missing key without a default, or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_key(_join(where, key), key, fields, where)
    arguments = {key: convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise MifyError(f"the key {_join(where, name)} is missing", f"set it: --{_join(where, name)}=…")
    return cls(**arguments)


def unknown_key(full: str, key: str, known: Iterable[str], where: str) -> MifyError:
    """The error for a key that no field has, with the nearest name as the remedy."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    remedy = f"did you mean {_join(where, near[0])}?" if near else f"known here: {', '.join(names)}"
    return MifyError(f"unknown key {full}", remedy)


def convert(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the type of `annotation`; `"none"` is None where None is legal. Raises `MifyError` naming `where`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return convert(inner, value, where)
    if dataclasses.is_dataclass(annotation):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return value
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a table of keys", value)
        return build(typing.cast(type, annotation), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a table of keys", value)
        return {  # an entry that a parent recipe has is taken out with "none"
            str(key): convert(arguments[1], item, _join(where, key)) for key, item in value.items() if item != "none"
        }
    if isinstance(value, Raw) and annotation is not str and origin is not typing.Literal:
        value = _literal(value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _mismatch(where, "a list", value)
        return tuple(convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(argument) for argument in arguments], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise MifyError(f"{where} = {str(value)!r} is not known", f"{hint}choose from {', '.join(arguments)}")
        return str(value)
    return _scalar(annotation, value, where)


def _scalar(annotation: type, value: Any, where: str) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 2e9 tokens is a float in TOML
    if annotation is str and isinstance(value, str):
        return str(value)
    if type(value) is not annotation:
        raise _mismatch(
            where,
            {int: "a whole number", float: "a number", bool: "true or false"}.get(annotation, annotation.__name__),
            value,
        )
    return value


def _literal(value: str) -> Any:
    """Reads `1`, `2.5`, `true`, `[1, 2]` as TOML does; anything else stays a string."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return str(value)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on it, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["--data.context=512"]` as nested tables with `Raw` leaves."""
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            named = argument.startswith("--") and not equals
            raise MifyError(
                f"cannot read the argument {argument!r}",
                f"join key and value: {argument}=VALUE"
                if named
                else "write --key=value: --optimizer.learning_rate=3e-4",
            )
        nested: Any = Raw(value)
        for part in reversed(key.replace("-", "_").split(".")):
            nested = {part: nested}
        tree = merge(tree, nested)
    return tree


def to_plain(node: Any) -> Any:
    """The tree as nested dicts and lists (for JSON)."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {field.name: to_plain(getattr(node, field.name)) for field in dataclasses.fields(node)}
    if isinstance(node, Mapping):
        return {key: to_plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [to_plain(value) for value in node]
    return node


def flatten(node: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`{"data": {"context": 512}}` → `{"data.context": 512}`."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, _join(where, key))
        else:
            flat[_join(where, key)] = value
    return flat


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces. What hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _mismatch(where: str, wanted: str, value: Any) -> MifyError:
    return MifyError(f"{where} = {value!r} is not {wanted}", f"give {where} {wanted}")
