"""Docstring prose, against a plain walk over the whole tree."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from pathlib import Path

import pytest

from mify.curation.docstrings import docstring_prose

LONG = "This sentence says something that is worth reading twice. " * 5


def naive(source: str, length: int) -> list[str]:
    """Every docstring of the tree, found by ast.walk, in the order of the file."""
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    ]
    nodes.sort(key=lambda node: (node.body[0].lineno, node.body[0].col_offset))
    texts = [inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip() for node in nodes]
    return [text for text in texts if len(text) >= length]


@pytest.mark.parametrize(
    "module", ["argparse", "collections/__init__", "typing", "statistics", "decimal", "asyncio/tasks"]
)
def test_equal_to_a_walk_over_the_tree(module: str) -> None:
    source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
    expected = naive(source, 200)
    assert docstring_prose(source, min_share=0.0) == ("\n\n".join(expected) + "\n" if expected else "")


def test_definitions_inside_blocks_are_found() -> None:
    source = (
        f"if x:\n    def f():\n        '''one {LONG}'''\nelse:\n    class A:\n        def g(self):\n"
        f'            """two {LONG}"""\ntry:\n    pass\nexcept ValueError:\n    def h():\n        """three {LONG}"""\n'
        f'match x:\n    case 1:\n        async def k():\n            """four {LONG}"""\n'
    )
    prose = docstring_prose(source)
    places = [prose.index(word) for word in ("one", "two", "three", "four")]
    assert places == sorted(places)


def test_short_docstrings_other_strings_and_broken_code_give_nothing() -> None:
    assert docstring_prose('"""Short."""\n') == ""
    assert docstring_prose(f'x = """{LONG}"""\n') == ""
    assert docstring_prose(f'def f(:\n    """{LONG}"""\n') == ""
    assert docstring_prose("") == ""
    assert docstring_prose(f'"""{LONG}\0"""\n') == ""
    assert docstring_prose(f'"""{LONG}"""\n' + "x = " + "(" * 5000) == ""


def test_files_with_little_prose_are_left_unparsed() -> None:
    source = f'"""{LONG}"""\n' + "x = 1  # something else\n" * 200
    assert docstring_prose(source) == ""
    assert docstring_prose(source, min_share=0.05) == LONG.strip() + "\n"


def test_the_collector_is_as_it_was() -> None:
    import gc

    assert gc.isenabled()
    docstring_prose(f'"""{LONG}"""\n')
    assert gc.isenabled()
    gc.disable()
    try:
        docstring_prose(f'"""{LONG}"""\n')
        assert not gc.isenabled()
    finally:
        gc.enable()
