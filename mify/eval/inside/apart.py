"""The two-process form: the solution in one process, its tests in another, plain data between them.

The tests' process runs only text the benchmark's authors wrote; of the solution it sees values, rebuilt from JSON as
plain types. So an object whose `__eq__` is always true, a redefined `len`, a look through the interpreter's frames or
an early exit change nothing there. What cannot cross as data (a class's instance, a generator) stays behind and is used
through a `Remote`, which can be called, iterated and indexed, but never compared: it equals nothing but itself.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_MESSAGE = 64 << 20
MAX_DEPTH = 200


class NotPlainDataError(TypeError):
    """A value of the tests that cannot be handed to the solution as data (a function, an instance)."""


class Remote:
    """Something of the solution's that is no plain data."""

    def __init__(self, channel: Channel, reference: str | int) -> None:
        self.__dict__["_channel"], self.__dict__["_reference"] = channel, reference

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._channel.ask("call", self._reference, list(arguments), keywords)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._channel.ask("iter", self._reference)
        while True:
            found, value = self._channel.ask("next", iterator._reference)
            if not found:
                return
            yield value

    def __next__(self) -> Any:
        found, value = self._channel.ask("next", self._reference)
        if not found:
            raise StopIteration
        return value

    def __len__(self) -> int:
        return int(self._channel.ask("len", self._reference))

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("item", self._reference, [key])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._channel.ask("attribute", self._reference, [name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("set", self._reference, [name, value])

    def __bool__(self) -> bool:
        return True


class Channel:
    """The tests' end: asks the solution's process and rebuilds what it answers."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def names(self) -> list[str]:
        """What the solution defines, once it has run; its exception where it failed."""
        answer = receive(self._descriptor)
        if answer is None:
            raise RuntimeError("the solution ended early")
        _raise_error(answer)
        return [name for name in answer["names"] if isinstance(name, str)]

    def ask(
        self,
        operation: str,
        reference: str | int,
        arguments: list[Any] | None = None,
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        arguments = arguments or []
        message = {
            "operation": operation,
            "of": reference,
            "arguments": [encode(value, _refuse) for value in arguments],
            "keywords": {key: encode(value, _refuse) for key, value in (keywords or {}).items()},
        }
        send(self._descriptor, message)
        answer = receive(self._descriptor)
        if not isinstance(answer, dict):
            raise RuntimeError("the solution ended early")
        for index, after in answer.get("changed", ()):
            _update(arguments[index], decode(after, self._remote))
        _raise_error(answer)
        return decode(answer["value"], self._remote)

    def _remote(self, reference: int) -> Remote:
        return Remote(self, reference)


def _raise_error(answer: dict[str, Any]) -> None:
    if "error" in answer:
        name, text = answer["error"]
        kind = getattr(builtins, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        try:
            raised = kind(str(text))
        except TypeError:  # UnicodeDecodeError and its like want more than a message
            raised = RuntimeError(f"{name}: {text}")
        raise raised


def _refuse(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"remote": value._reference}
    raise NotPlainDataError(f"a {type(value).__name__} cannot be handed to the solution as data")


def _update(target: Any, source: Any) -> None:
    """Makes the tests' own argument what the solution made of its copy."""
    if isinstance(target, (list, deque)):
        target.clear()
        target.extend(source)
    elif isinstance(target, (dict, set)):
        target.clear()
        target.update(source)


def serve_solution(descriptor: int, namespace: dict[str, Any]) -> None:
    """The solution's end: tells what it defines, then answers until the tests' process closes the channel."""
    kept: dict[int, Any] = {}

    def keep(value: Any) -> Any:
        kept[len(kept)] = value
        return {"remote": len(kept) - 1}

    send(descriptor, {"names": [name for name in list(namespace) if not name.startswith("__")]})
    while (request := receive(descriptor)) is not None:
        reference = request["of"]
        target = namespace[reference] if isinstance(reference, str) else kept[reference]
        answer: dict[str, Any] = {}
        arguments = [decode(value, kept.__getitem__) for value in request["arguments"]]
        keywords = {key: decode(value, kept.__getitem__) for key, value in request["keywords"].items()}
        try:
            value = _OPERATIONS[request["operation"]](target, arguments, keywords)
            answer["value"] = encode(value, keep)
        except Exception as error:  # noqa: BLE001 - whatever the solution raises belongs to the tests
            answer = {"error": [type(error).__name__, str(error)[:500]]}
        answer["changed"] = [
            (index, after)
            for index, (value, before) in enumerate(zip(arguments, request["arguments"], strict=True))
            if isinstance(value, (list, dict, set, deque)) and (after := encode(value, keep)) != before
        ]
        send(descriptor, answer)


def _next(target: Any, arguments: list[Any], keywords: dict[str, Any]) -> tuple[bool, Any]:
    try:
        return True, next(target)
    except StopIteration:
        return False, None


def _value(target: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    return target


_OPERATIONS: dict[str, Callable[[Any, list[Any], dict[str, Any]], Any]] = {
    "call": lambda target, arguments, keywords: target(*arguments, **keywords),
    "iter": lambda target, arguments, keywords: _Iterator(target),
    "next": _next,
    "len": lambda target, arguments, keywords: len(target),
    "item": lambda target, arguments, keywords: target[arguments[0]],
    "attribute": lambda target, arguments, keywords: getattr(target, arguments[0]),
    "set": lambda target, arguments, keywords: setattr(target, *arguments),
    "value": _value,
}


class _Iterator:
    """Keeps an iterator from being taken for data."""

    def __init__(self, target: Any) -> None:
        self._inner = iter(target)

    def __next__(self) -> Any:
        return next(self._inner)


def bind(channel: Channel, namespace: dict[str, Any], entry_points: list[str], tests: Any) -> None:
    """Puts the solution's names that the tests use into their namespace.

    An entry point always comes from the solution; another name only where it is neither a builtin nor the benchmark's
    own.

    Args:
        tests: the compiled tests.
    """
    offered = set(channel.names())
    used = _names_used(tests)
    for name in sorted(offered & (used | set(entry_points))):
        if name in entry_points or not (name in namespace or hasattr(builtins, name)):
            value = channel.ask("value", name)
            namespace[name] = Remote(channel, name) if isinstance(value, Remote) else value


def _names_used(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= _names_used(constant)
    return names


def encode(value: Any, other: Callable[[Any], Any], depth: int = 0) -> Any:
    """`value` as JSON values. A subclass of a plain type is reduced to that type by the type's own methods.

    Args:
        other: encodes what is no plain data.
    """
    if depth > MAX_DEPTH:
        raise NotPlainDataError("the data are nested too deeply")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, int):
        plain = int.__pos__(value)
        return plain if -(2**53) < plain < 2**53 else {"int": hex(plain)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__add__(value, "")

    def each(values: Any) -> list[Any]:
        return [encode(item, other, depth + 1) for item in values]

    if isinstance(value, list):
        return each(list.__iter__(value))
    if isinstance(value, tuple):
        return {"tuple": each(tuple.__iter__(value))}
    if isinstance(value, dict):
        return {"dict": [each(pair) for pair in dict.items(value)]}
    if isinstance(value, set):
        return {"set": _ordered(each(set.__iter__(value)))}
    if isinstance(value, frozenset):
        return {"frozenset": _ordered(each(frozenset.__iter__(value)))}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, type) and value in _BUILTIN_TYPES:
        return {"type": value.__name__}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is range:
        return {"range": [encode(part, other) for part in (value.start, value.stop, value.step)]}
    if kind is deque:
        return {"deque": each(value)}
    if kind is Decimal:
        return {"decimal": str(value)}
    if kind is Fraction:
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if kind in (datetime, date, time) and getattr(value, "tzinfo", None) is None:
        return {kind.__name__: value.isoformat()}
    if kind is timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        if getattr(value, "shape", ()) == ():
            return encode(value.tolist(), other, depth + 1)
        return {"ndarray": [str(value.dtype), encode(value.tolist(), other, depth + 1)]}
    return other(value)


def _ordered(items: list[Any]) -> list[Any]:
    """A set's items in an order that depends on them alone, so that equal sets have equal texts."""
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


_BUILTIN_TYPES = tuple(value for value in vars(builtins).values() if isinstance(value, type))
_MOMENTS: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
}


def decode(value: Any, remote: Callable[[int], Any]) -> Any:
    """The value that `encode` wrote. Input is not trusted: an unknown form raises ValueError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(item, remote) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("no form of a value")
    ((name, content),) = value.items()
    if name == "remote":
        return remote(content)
    if name == "dict":
        return {decode(key, remote): decode(item, remote) for key, item in content}
    if name == "int":
        return int(content, 16)
    if name in ("tuple", "set", "frozenset", "deque"):
        kinds: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
        return kinds[name](decode(item, remote) for item in content)
    if name in ("bytes", "bytearray"):
        data = bytes.fromhex(content)
        return data if name == "bytes" else bytearray(data)
    if name == "type":
        return next(kind for kind in _BUILTIN_TYPES if kind.__name__ == content)
    if name == "complex":
        return complex(float(content[0]), float(content[1]))
    if name == "range":
        return range(*(decode(part, remote) for part in content))
    if name == "decimal":
        return Decimal(content)
    if name == "fraction":
        return Fraction(int(content[0], 16), int(content[1], 16))
    if name in _MOMENTS:
        return _MOMENTS[name](content)
    if name == "timedelta":
        return timedelta(*content)
    if name == "ndarray":
        import numpy

        return numpy.array(decode(content[1], remote), dtype=content[0])
    raise ValueError(f"no form of a value: {name!r}")


def send(descriptor: int, message: Any) -> None:
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> Any:
    """One message, or None at the end of the stream."""
    header = _read_exactly(descriptor, 4)
    if header is None:
        return None
    size = struct.unpack(">I", header)[0]
    if size > MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    body = _read_exactly(descriptor, size)
    return None if body is None else json.loads(body)


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = os.read(descriptor, min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)
