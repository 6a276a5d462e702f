"""Which programs could reach for the harness that judges them: those must pass in the two-process form as well.

In the joint form a program shares the interpreter with its tests, and Python hides nothing from a program that looks.
Honest solutions do not look: they compute. So a program is plain where its syntax tree holds only what computing needs,
and suspect where it holds anything that could inspect frames, replace what tests rely on, or answer every comparison
with true. Being suspect is no verdict; it only costs a second run.
"""

from __future__ import annotations

import ast
import builtins
import re
import threading
import warnings

# Modules through whose public names nothing of the interpreter can be reached.
_PLAIN_MODULES = frozenset(
    """abc array base64 binascii bisect calendar cmath collections copy dataclasses datetime decimal enum fractions
    functools hashlib heapq itertools json math numbers numpy operator pandas queue random re secrets statistics string
    struct textwrap time typing unicodedata uuid zlib __future__""".split()  # noqa: SIM905 - read as words
)
# Names that modules above leak, and attributes through which frames, code, classes and other modules can be reached.
_TELLING = frozenset(
    """sys os builtins inspect types gc ctypes importlib weakref threading warnings contextlib codecs reprlib keyword
    linecache tb_frame tb_next f_back f_builtins f_code f_globals f_locals gi_frame gi_code cr_frame cr_code ag_frame
    ag_code func_globals func_code with_traceback settrace setprofile modules mro attrgetter methodcaller ctypeslib lib
    f2py distutils testing memmap eval exec compile get_type_hints ForwardRef Formatter vformat format_map get_field
    frompyfunc vectorize register set_blocking""".split()  # noqa: SIM905
)
_TELLING_NAMES = frozenset(
    """breakpoint compile delattr dir eval exec exit getattr globals help input locals memoryview open quit setattr
    vars""".split()  # noqa: SIM905
)
# Methods a data class of a solution may have; others (__eq__, __bool__, __hash__, __del__ …) answer to the tests.
_PLAIN_METHODS = frozenset(
    """__init__ __repr__ __str__ __len__ __iter__ __next__ __getitem__ __setitem__ __contains__ __call__ __name__
    __doc__ __post_init__""".split()  # noqa: SIM905
)
_TELLING_TEXT = re.compile(r"__|\b(?:tb|f|gi|cr|ag|co)_[a-z]|[{][^{}]*[.\[]")
_BUILTINS = frozenset(dir(builtins))

_PARSING = threading.Lock()


def suspicion(source: str, used_by_tests: frozenset[str] = frozenset()) -> str | None:
    """What in a program could reach for the harness, or None where nothing could.

    Args:
        source: the program without its tests.
        used_by_tests: names the tests rely on that are not the program's to define.
    """
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # it cannot run either
    try:
        return _Search(used_by_tests).run(tree)
    except RecursionError:
        return "is nested too deeply to be read"


class _Search:
    def __init__(self, used_by_tests: frozenset[str]) -> None:
        self._guarded = _BUILTINS | used_by_tests

    def run(self, tree: ast.Module) -> str | None:
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        docstrings = _docstrings(tree)
        for name in _bound_at_top(tree):
            if name in self._guarded:
                return f"defines {name}, which the tests rely on"
        for node in ast.walk(tree):
            if id(node) not in docstrings and (found := self._look(node, imported)):
                return found
        return None

    def _look(self, node: ast.AST, imported: set[str]) -> str | None:
        if isinstance(node, ast.Import):
            return self._modules([alias.name for alias in node.names])
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            odd = next((name for name in names if name == "*" or name.startswith("_") or name in _TELLING), None)
            return f"imports {odd}" if odd and node.module != "__future__" else self._modules([node.module or "."])
        if isinstance(node, ast.Attribute):
            if (node.attr.startswith("_") and not _own(node)) or node.attr in _TELLING:
                return f"uses the attribute {node.attr}"
            if not isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name) and node.value.id in imported:
                return f"changes {node.value.id}.{node.attr}"
            if node.attr == "format" and not (
                isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            ):
                return "formats with a text made at run time"
        if isinstance(node, ast.Name) and (
            node.id in _TELLING_NAMES or (node.id.startswith("__") and node.id != "__name__")
        ):
            return f"uses {node.id}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "type"
            and len(node.args) > 1
        ):
            return "makes a class at run time"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _odd_dunder(node.name):
            return f"defines {node.name}"
        if isinstance(node, ast.ClassDef) and (node.keywords or node.decorator_list) and not _dataclass(node):
            return f"makes the class {node.name} in an unusual way"
        if isinstance(node, ast.MatchClass) and any(
            name.startswith("_") or name in _TELLING for name in node.kwd_attrs
        ):
            return "matches attributes"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _tells(node.value):
            return f"holds the text {node.value[:40]!r}"
        if isinstance(node, ast.Global) and any(name in self._guarded for name in node.names):
            return "changes a builtin"
        return None

    @staticmethod
    def _modules(names: list[str]) -> str | None:
        odd = next((name for name in names if not _plain_module(name)), None)
        return f"imports {odd}" if odd else None


def _plain_module(name: str) -> bool:
    first, *rest = name.split(".")
    return first in _PLAIN_MODULES and not any(part.startswith("_") or part in _TELLING for part in rest)


def _own(node: ast.Attribute) -> bool:
    """A private attribute of its own object (`self._items`), not a dunder."""
    return isinstance(node.value, ast.Name) and node.value.id == "self" and not node.attr.startswith("__")


def _tells(text: str) -> bool:
    return text != "__main__" and _TELLING_TEXT.search(text) is not None


def _odd_dunder(name: str) -> bool:
    return name.startswith("__") and name not in _PLAIN_METHODS


def _dataclass(node: ast.ClassDef) -> bool:
    names = [part.id for part in node.decorator_list if isinstance(part, ast.Name)]
    return not node.keywords and names == ["dataclass"] and len(node.decorator_list) == 1


def _docstrings(tree: ast.Module) -> set[int]:
    """Texts that stand alone as a statement: no program can reach them but through an attribute that tells."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _bound_at_top(tree: ast.Module) -> set[str]:
    """Names that statements of the module itself bind (not those inside functions, which are their own)."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            # `import math` gives the tests the math they mean; only another thing under that name would not.
            plain = isinstance(node, ast.Import)
            names |= {alias.asname or alias.name for alias in node.names if alias.asname or not plain}
        pending.extend(ast.iter_child_nodes(node))
    return names


def parse(source: str) -> ast.Module:
    """`ast.parse` for texts that models wrote: in any thread, and without its warnings, which nobody asked for."""
    # CPython 3.11 counts the depth of the tree it builds in one place for all threads, and raises SystemError where two
    # build at once (CPython gh-106905).
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def names_used(source: str) -> frozenset[str]:
    """All names that a text loads or calls; empty where it is no Python."""
    try:
        return frozenset(node.id for node in ast.walk(parse(source)) if isinstance(node, ast.Name))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
