"""Syntax nodes of documents, by tree-sitter (extra `curation`): where FIM with `span="syntax"` may cut.

They are found when shards are written and stored in them, so that a plan stays a pure function of the shards (another
version of a grammar cannot change a run that is resumed) and needs no parser. Cutting out whole nodes of the syntax
tree is what Gong et al., "Structure-Aware Fill-in-the-Middle Pretraining for Code", 2025, call AST-FIM.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.data.shard_writer import TextDocument

MIN_CHARACTERS = 8
"""Smaller nodes (names, numbers, operators) are left out: they would be most of all, and a middle of one word teaches
little."""


def grammars() -> dict[str, tuple[str, str]]:
    """Language -> (module, function that gives the grammar)."""
    from mify.curation.syntax import GRAMMARS

    return {"python": ("tree_sitter_python", "language"), **GRAMMARS}


def installed_grammars() -> dict[str, str]:
    """Language -> package and version of its grammar, for those that are installed.

    Raises: MifyError: there is none.
    """
    if importlib.util.find_spec("tree_sitter") is None:
        raise MifyError("syntax nodes need tree-sitter, which is not installed", "pip install 'mify[curation]'")
    found = {}
    for language, (module, _) in sorted(grammars().items()):
        if importlib.util.find_spec(module) is not None:
            package = module.replace("_", "-")
            found[language] = f"{package} {version(package)}"
    if not found:
        raise MifyError("no tree-sitter grammar is installed", "pip install 'mify[curation]'")
    return found


@functools.cache
def _parser(language: str) -> Any:
    """A parser, or None where there is no grammar."""
    known = grammars().get(language)
    if known is None or importlib.util.find_spec(known[0]) is None:
        return None
    from tree_sitter import Language, Parser

    return Parser(Language(getattr(importlib.import_module(known[0]), known[1])()))


def syntax_nodes(text: str, language: str) -> NDArray[np.int32]:
    """(N, 2) characters [start, end) of the named nodes of at least `MIN_CHARACTERS`, sorted by (start, -end).

    The root, nodes within what the grammar could not place, and nodes of one extent with another are left out. Without
    a grammar for the language there are none.
    """
    parser = _parser(language)
    if parser is None or not text:
        return np.zeros((0, 2), np.int32)
    source = text.encode()
    cursor = parser.parse(source).root_node.walk()
    found: set[tuple[int, int]] = set()
    descend = cursor.goto_first_child()
    while descend:
        node = cursor.node
        large = node.end_byte - node.start_byte >= MIN_CHARACTERS
        if large and node.is_named and not node.is_error:
            found.add((node.start_byte, -node.end_byte))
        if large and not node.is_error and cursor.goto_first_child():
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent() or cursor.depth == 0:
                descend = False
                break
    spans = np.array(sorted(found), np.int64).reshape(-1, 2) * [1, -1]
    if len(source) != len(text):  # from bytes to characters
        leads = (np.frombuffer(source, np.uint8) & 0xC0) != 0x80
        spans = np.concatenate([[0], np.cumsum(leads)])[spans]
        spans = spans[spans[:, 1] - spans[:, 0] >= MIN_CHARACTERS]
    return spans.astype(np.int32)


def document_nodes(document: TextDocument) -> NDArray[np.int32]:
    """The nodes of a document; of one that has files, those of all its files. Characters are counted through it."""
    files = getattr(document, "files", None)
    if files is None:
        return syntax_nodes(document.text, document.language)
    found, start = [np.zeros((0, 2), np.int32)], len(document.text) - sum(len(file.shown) for file in files)
    for file in files:
        code = start + len(file.shown) - len(file.text)
        found.append(syntax_nodes(file.text, file.language) + np.int32(code))
        start += len(file.shown)
    return np.concatenate(found)
