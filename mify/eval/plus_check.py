"""How `evalplus` compares an output with the expected one, as text that runs inside a program's tests.

evalplus/eval/__init__.py, unsafe_execute, without numpy: `atol` stays raised once a float was expected, as there. The
reference solution runs in a namespace of its own, each input copied for each of the two. `special` gets (output,
expected, arguments, equal, atol) and says whether the output is right; `judged` ends the comparison before it begins.
"""

from __future__ import annotations

CHECK = """
import copy as _copy, json as _json, math as _math


def _is_floats(x):
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and bool(x) and all(isinstance(i, float) for i in x))


def _close(a, b, atol):
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_close(x, y, atol) for x, y in zip(a, b))
    if not isinstance(a, (int, float, complex)) or not isinstance(b, (int, float, complex)):
        raise TypeError("no numbers")
    return a == b or (_math.isfinite(b) and abs(a - b) <= atol + 1e-07 * abs(b))


def _check(candidate, reference, inputs, atol, special=None, judged=None):
    for arguments in inputs:
        out = candidate(*_copy.deepcopy(arguments))
        if judged is not None:
            assert judged(out, arguments, atol)
            continue
        expected = reference(*_copy.deepcopy(arguments))
        same = out == expected
        if special is not None:
            same = special(out, expected, arguments, same, atol)
        if atol == 0 and _is_floats(expected):
            atol = 1e-6
        if not same and atol != 0:
            assert type(out) == type(expected)
            assert _close(out, expected, atol)
        else:
            assert same
"""
