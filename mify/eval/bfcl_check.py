"""Whether function calls are those a BFCL item asks for: the benchmark's AST checker, rule by rule.

Gorilla's bfcl_eval/eval_checker/ast_eval/ast_checker.py is the definition (Patil et al., "The Berkeley Function Calling
Leaderboard"); the tests hold this one against it, item by item. Its quirks are kept, since scores are compared: texts
are equal without case, spaces and `,./-_*^`; a type is looked at one level deep; a value of the wrong type passes where
the expected answers have that type (a variable's name, say).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mify.eval.bfcl_values import JAVA_TYPES, JAVASCRIPT_TYPES, java_value, javascript_value

Call = dict[str, dict[str, Any]]
"""{name: {parameter: value}}"""

_PYTHON_TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
_LISTS = ("Array", "ArrayList", "array")


class _WrongError(Exception):
    """Why a call is not the expected one."""


def check_calls(
    functions: Sequence[Mapping[str, Any]],
    calls: Sequence[Call],
    expected: Sequence[Mapping[str, Mapping[str, list[Any]]]],
    *,
    language: str = "python",
    parallel: bool = False,
) -> str | None:
    """What is wrong with the calls, or None where they are right.

    Args:
        functions: the item's function descriptions. expected: one {name: {parameter: allowed values}} a call; an
            allowed value of "" means that the parameter may be left out.
        language: "python", "java" or "javascript": of the functions; values of the last two come as source text.
        parallel: the calls may come in any order.
    """
    if len(calls) != len(expected):
        return f"{len(calls)} calls where {len(expected)} are expected"
    left = list(range(len(calls)))
    for wanted in expected:
        name = next(iter(wanted))
        described = next((function for function in functions if function["name"] == name), None)
        if not parallel and len(functions) == 1:
            described = functions[0]
        if described is None:
            return f"no function is called {name}"
        problem = ""
        for index in left if parallel else left[:1]:
            try:
                _check(described, calls[index], wanted[name], language)
            except _WrongError as error:
                problem = problem or str(error)
            else:
                left.remove(index)
                break
        else:
            return problem or f"no call of {name}"
    return None


def _check(described: Mapping[str, Any], call: Call, allowed: Mapping[str, list[Any]], language: str) -> None:
    name = described["name"]
    if name not in call:
        raise _WrongError(f"{name} is not called")
    given = call[name]
    properties = described["parameters"]["properties"]
    for parameter in described["parameters"]["required"]:
        if parameter not in given:
            raise _WrongError(f"{name} lacks {parameter!r}")
    for parameter, value in given.items():
        if parameter not in properties or parameter not in allowed:
            raise _WrongError(f"{name} has no parameter {parameter!r}")
        _check_value(parameter, value, properties[parameter], allowed[parameter], language)
    for parameter, values in allowed.items():
        if parameter not in given and "" not in values:
            raise _WrongError(f"{name} lacks {parameter!r}")


def _check_value(parameter: str, value: Any, described: Mapping[str, Any], allowed: list[Any], language: str) -> None:
    kind = described["type"]
    nested = None
    if language == "python":
        wanted = _PYTHON_TYPES[kind]
        if kind in ("array", "tuple"):
            nested = _PYTHON_TYPES[described["items"]["type"]]
    else:
        types, read = (JAVA_TYPES, java_value) if language == "java" else (JAVASCRIPT_TYPES, javascript_value)
        wanted = types[kind]
        if not isinstance(value, str):
            raise _WrongError(f"{parameter!r} is {value!r}, not source text")
        inner = described["items"]["type"] if kind in _LISTS else None
        nested = types[inner] if inner is not None else None
        value = read(value, kind, inner)
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if language == "python" and kind == "float" and type(value) is int:
        value = float(value)
    is_variable = _check_type(parameter, value, allowed, wanted, nested)
    right = value in allowed
    if not is_variable:
        if wanted is dict:
            right = any(_dict_matches(value, choice) for choice in allowed if choice != "")
        elif wanted is list and nested is dict:
            right = any(_dicts_match(value, choice) for choice in allowed)
        elif wanted is str:
            right = _plain(value) in [_plain(choice) for choice in allowed if isinstance(choice, str)]
        elif wanted is list:
            right = [_plain(item) for item in value] in [[_plain(item) for item in choice] for choice in allowed]
    if not right:
        raise _WrongError(f"{parameter!r} is {value!r}, expected one of {allowed!r}")


def _check_type(parameter: str, value: Any, allowed: list[Any], wanted: type[Any], nested: type[Any] | None) -> bool:
    """Whether the value stands for a variable; raises where its type is none that is allowed."""
    first = next((type(choice) for choice in allowed if choice != ""), None)
    is_variable = first is not None and first is not wanted
    if type(value) is wanted:
        if nested is None:
            return is_variable
        for choice in allowed:
            if not isinstance(choice, list) or all(_of_type(item, choice, nested) for item in value):
                return is_variable
    if first is not None and type(value) is first:
        return True
    raise _WrongError(f"{parameter!r} is {value!r}, not of type {wanted.__name__}")


def _of_type(item: Any, choices: list[Any], wanted: type) -> bool:
    first = next((type(choice) for choice in choices if choice != ""), None)
    return type(item) is wanted or (first is not None and type(item) is first)


def _dicts_match(value: list[Any], choice: Any) -> bool:
    return len(value) == len(choice) and all(
        wanted != "" and _dict_matches(item, wanted) for item, wanted in zip(value, choice, strict=True)
    )


def _dict_matches(value: Mapping[str, Any], choice: Mapping[str, list[Any]]) -> bool:
    """Values as texts are compared; the dictionary may leave out what is allowed to be ""."""
    if any(key not in choice for key in value):
        return False
    return all(
        _plain(value[key]) in [_plain(item) for item in choices] if key in value else "" in choices
        for key, choices in choice.items()
    )


def _plain(value: Any) -> Any:
    """A text without what does not count; other values as they are."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
