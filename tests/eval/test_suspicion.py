"""Which programs are suspect: those that could reach the harness; never those that only compute."""

from __future__ import annotations

import ast

import pytest

from mify.eval.humaneval import humaneval
from mify.eval.suspicion import names_used, suspicion

PLAIN = [
    "import math\nfrom typing import List\ndef f(x: List[int]) -> float:\n    return math.sqrt(sum(x))",
    "from collections import Counter, defaultdict\ndef f(s):\n    sum = 0\n    for list in s:\n"
    "        sum += 1\n    return sum",
    "class Stack:\n    def __init__(self):\n        self._items = []\n"
    "    def push(self, x):\n        self._items.append(x)",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int",
    "import re\ndef f(s):\n    return re.sub(r'[aeiou]', '', s)",
    "def f(a):\n    return 'sum is {}'.format(sum(a)) + f'{len(a):>5}' + '%d' % len(a)",
    'def f(a):\n    """Uses sys._getframe? No: only the text does. __eq__"""\n    return sorted(a, key=lambda v: -v)',
    "if __name__ == '__main__':\n    print(1)",
    "import numpy as np\ndef f(a):\n    return np.array(a).mean()",
]
SUSPECT = [
    "import sys",
    "import os",
    "import math.sys",
    "from typing import sys",
    "from os import *",
    "import collections\ncollections._sys",
    "import random\nrandom._os._exit(0)",
    "import statistics\nstatistics.sys.exit()",
    "class A:\n    def __eq__(self, o):\n        return True",
    "class A(int):\n    __eq__ = lambda s, o: True",
    "A = type('A', (int,), {})",
    "class A(metaclass=type):\n    pass",
    "x = getattr(f, 'a' + 'b')",
    "eval('1')",
    "exec('1')",
    "__import__('os')",
    "__builtins__",
    "().__class__",
    "(lambda: 0).__globals__",
    "try:\n    1/0\nexcept Exception as e:\n    e.__traceback__",
    "try:\n    1/0\nexcept Exception as e:\n    t = e.with_traceback(None)",
    "def g():\n    yield\ng().gi_frame",
    "'{0.gi_frame}'.format(g())",
    "s = '{0.' + 'gi_frame}'\ns.format(g())",
    "str.format('x')",
    "match x:\n    case object(gi_frame=f):\n        pass",
    "x = '__subclasses__'",
    "import math\nmath.sqrt = lambda x: 0",
    "len = lambda x: 0",
    "def abs(x):\n    return 0",
    "from operator import mul as sum",
    "for isinstance in [0]:\n    pass",
    "class list:\n    pass",
    "def f():\n    global len\n    len = 1",
    "globals()['x'] = 1",
    "vars()",
    "import unittest.mock",
    "from unittest.mock import ANY",
    "import ctypes",
    "import threading",
    "open('x')",
    "from . import x",
]


@pytest.mark.parametrize("source", PLAIN)
def test_plain(source: str) -> None:
    ast.parse(source)
    assert suspicion(source) is None


@pytest.mark.parametrize("source", SUSPECT)
def test_suspect(source: str) -> None:
    ast.parse(source)
    assert suspicion(source) is not None


def test_a_name_that_the_tests_rely_on() -> None:
    source = "def poly(xs, x):\n    return 0"
    assert suspicion(source) is None
    assert suspicion(source, names_used("assert poly([], f(1)) == 0")) == "defines poly, which the tests rely on"


@pytest.mark.parametrize("source", ["def f(:", "x = (" * 5000, "\0", "x = " + "-" * 100000 + "1"])
def test_what_is_no_python_is_left_to_the_interpreter(source: str) -> None:
    assert suspicion(source) in (None, "is nested too deeply to be read")


def test_few_published_solutions_are_suspect() -> None:
    """A second run is to be rare: of HumanEval's solutions, only that which calls eval."""
    items = humaneval().items
    found = [item.id for item in items if suspicion(item.fields["prompt"] + item.fields["canonical_solution"])]
    assert found == ["HumanEval/160"]
