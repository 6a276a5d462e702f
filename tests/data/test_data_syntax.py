"""Syntax nodes, and cuts around them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_oracles import MakeShards, TextOf, pieces_of, take_apart, text_bytes

from mify.data import syntax
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, plan_window
from mify.data.shards import TokenShards, write_shards
from mify.data.stream import Source, TokenStream
from mify.data.syntax import MIN_CHARACTERS, syntax_nodes
from mify.errors import MifyError
from mify.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tree_sitter_python") is None, reason="needs tree-sitter and its grammar of Python"
)

SOURCE = '''def greet(name, greeting="hello"):
    """Say it — in “typographic” quotes."""
    if name == "никто":
        return None
    return [f"{greeting}, {each}!" for each in name]
'''


def test_nodes_are_those_that_pythons_own_parser_knows() -> None:
    found = {SOURCE[a:b] for a, b in syntax_nodes(SOURCE, "python").tolist()}
    lines = SOURCE.splitlines(keepends=True)

    def text_of(node: ast.stmt | ast.expr) -> str:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        part = "".join(lines[node.lineno - 1 : node.end_lineno]).encode()
        last = len(lines[node.end_lineno - 1].encode()) - node.end_col_offset
        return part[node.col_offset : len(part) - last].decode()

    function = ast.parse(SOURCE).body[0]
    kinds = (ast.If, ast.Return, ast.ListComp, ast.Compare, ast.JoinedStr)
    expected = {text_of(node) for node in ast.walk(function) if isinstance(node, kinds)}
    assert len(expected) == 6
    assert expected <= found


def test_nodes_are_sorted_large_enough_and_none_is_the_whole() -> None:
    nodes = syntax_nodes(SOURCE, "python").tolist()
    assert nodes == sorted(nodes, key=lambda node: (node[0], -node[1]))
    assert len({tuple(node) for node in nodes}) == len(nodes)
    assert all(high - low >= MIN_CHARACTERS for low, high in nodes)
    assert all(0 <= low < high <= len(SOURCE) for low, high in nodes)


def test_what_no_grammar_reads_has_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert syntax_nodes(SOURCE, "no such language").shape == (0, 2)
    assert syntax_nodes("", "python").shape == (0, 2)
    assert syntax_nodes("<<< ??? not python at all >>>" * 3, "python").dtype == np.int32
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MifyError, match="tree-sitter"):
        syntax.installed_grammars()


def plan_of(shards: TokenShards, tokenizer: Tokenizer, context: int = 4096, seed: int = 1):  # type: ignore[no-untyped-def]
    config = PlanConfig(context, seed, FimConfig(1.0, span="syntax"))
    return plan_window(shards, tokenizer, range(shards.num_documents), config, 0, 0)


def test_every_middle_is_a_node(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer, encode_slowly: Callable[[str], list[int]]
) -> None:
    texts = [SOURCE * 3, *(source[:9000] for source in sources[:15])]
    shards = make_shards(texts, syntax=True, language_separators=True, shard_bytes=40_000)
    assert len(shards.tokens) > 2
    checked = 0
    for seed in range(2):
        for piece in pieces_of(plan_of(shards, tokenizer, 16_384, seed), shards):
            text = texts[piece.document]
            apart = take_apart(piece, tokenizer)
            prefix, middle, suffix = (text_bytes(ids, tokenizer) for ids in (apart.prefix, apart.middle, apart.suffix))
            assert (prefix + middle + suffix).decode() == text
            low = len(prefix.decode())
            nodes = {tuple(node) for node in syntax_nodes(text, "python").tolist()}
            checked += (low, low + len(middle.decode())) in nodes
            assert apart.middle == encode_slowly(middle.decode())
    # A character between two statements has no node around it but the root: those cuts are uniform.
    assert checked > 0.85 * 2 * len(texts)


def test_fragments_choose_among_the_nodes_that_lie_within_them(
    sources: list[str], make_shards: MakeShards, tokenizer: Tokenizer
) -> None:
    text = max(sources, key=len)[:60_000]
    shards = make_shards([text], syntax=True)
    nodes = {tuple(node) for node in syntax_nodes(text, "python").tolist()}
    found, fragments = 0, 0
    start = 0
    for piece in sorted(pieces_of(plan_of(shards, tokenizer, 512), shards), key=lambda piece: piece.fragment):
        if not piece.mode:
            start += len(text_bytes([i for i in piece.ids if i != tokenizer.eot_id], tokenizer).decode())
            continue
        apart = take_apart(piece, tokenizer)
        prefix, middle, suffix = (
            len(text_bytes(ids, tokenizer).decode()) for ids in (apart.prefix, apart.middle, apart.suffix)
        )
        found += (start + prefix, start + prefix + middle) in nodes
        fragments += 1
        start += prefix + middle + suffix
    assert start == len(text)
    assert fragments > 20
    assert found > 0.7 * fragments


def test_shards_without_nodes_are_refused_before_the_first_batch(make_shards: MakeShards, tokenizer: Tokenizer) -> None:
    shards = make_shards([SOURCE])
    fim = FimConfig(0.5, span="syntax")
    with pytest.raises(MifyError, match="no syntax nodes"):
        TokenStream([Source("a", shards.folder, 1)], context=64, rows_per_step=1, seed=0, fim=fim)
    prose = make_shards([TextOf("Words, nothing to permute.", "text")], "prose")
    TokenStream([Source("a", prose.folder, 1)], context=64, rows_per_step=1, seed=0, fim=fim)


@pytest.mark.parametrize(("name", "where"), [("nodes", 4), ("node_offsets", 8)])
def test_damaged_nodes_are_named(
    name: str, where: int, make_shards: MakeShards, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = make_shards([SOURCE, SOURCE * 2], syntax=True).folder
    path = next(folder.glob(f"shard-*/{name}.bin"))
    path.write_bytes(path.read_bytes()[:-where])
    with pytest.raises(MifyError, match=name):
        TokenShards(folder, tokenizer)


def test_the_core_refuses_nodes_that_do_not_fit() -> None:
    from mify._core.packing import Shards

    tokens = [np.arange(4, dtype=np.uint16)]
    given = {"offsets": np.array([0, 4]), "keys": np.zeros(1, np.uint64), "domains": np.zeros(1, np.uint8)}
    for nodes, offsets in (([1, 2, 3], [0, 1]), ([1, 2], [0, 2]), ([1, 2], [0]), ([1, 2], [1, 1])):
        with pytest.raises(ValueError, match="node_offsets"):
            Shards(tokens, **given, nodes=np.array(nodes, np.int32), node_offsets=np.array(offsets))


def test_nodes_do_not_depend_on_threads(sources: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [TextOf(text) for text in sources[:12]]
    for threads in (1, 3):
        write_shards(documents, tokenizer, tmp_path / str(threads), syntax=True, shard_bytes=50_000, threads=threads)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert any(path.name == "nodes.bin" for path in files)
    assert all((tmp_path / "1" / path).read_bytes() == (tmp_path / "3" / path).read_bytes() for path in files)
