"""Wrong programs made of right ones, the same every time: small edits of a solution's syntax tree.

Used to hold two harnesses against each other: on canonical solutions alone, one that passes everything would agree.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import textwrap
from collections.abc import Iterator

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


def mutants(signature: str, body: str, *, count: int) -> list[str]:
    """At most `count` bodies that differ from `body` in one place, chosen by hash.

    Args:
        signature: what stands before the body: text that ends inside a function's definition.
        body: the function's body, indented, as the benchmark gives it.
    """
    lines = signature.count("\n")
    try:
        tree = ast.parse(signature + body)
    except SyntaxError:
        return []
    sites = [index for index, node in enumerate(ast.walk(tree)) if getattr(node, "lineno", 0) > lines]
    found: dict[str, None] = {}
    for site in sorted(sites, key=lambda index: hashlib.sha256(f"{body}:{index}".encode()).digest()):
        for changed in _edits(tree, site):
            function = changed.body[-1]
            if isinstance(function, ast.FunctionDef):
                statements = [node for node in function.body if node.lineno > lines]
                text = textwrap.indent("\n".join(map(ast.unparse, statements)), "    ") + "\n"
                if statements and text not in found:
                    found[text] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def _edits(tree: ast.Module, site: int) -> Iterator[ast.Module]:
    """The tree with the node at `site` (in walking order) changed, where there is a change for it."""
    changed = copy.deepcopy(tree)
    node = list(ast.walk(changed))[site]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        node.ops[0] = _COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _OPERATORS:
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value += "x"
    elif isinstance(node, ast.Return) and node.value is not None:
        node.value = None
    else:
        return
    yield ast.fix_missing_locations(changed)
