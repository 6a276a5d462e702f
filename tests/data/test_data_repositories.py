"""Repositories as documents: what is written, what FIM does with one of the files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from data_oracles import pieces_of

from mify.curation.documents import Document
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, plan_window
from mify.data.plan_ref import plan_window_ref
from mify.data.repositories import RepositoryDocument, repository_documents
from mify.data.shards import TokenShards, write_shards
from mify.errors import MifyError
from mify.tokenizer import Tokenizer


def file(repo: str, path: str, text: str, domain: str = "code") -> Document:
    return Document.create(text, domain, "python" if domain == "code" else "text", "MIT", "test", repo, path)


@pytest.fixture(scope="module")
def files(sources: list[str]) -> list[Document]:
    code = [file(f"o/r{i % 4}", f"pkg/m{i}.py", source[: 400 + 90 * i]) for i, source in enumerate(sources[:22])]
    odd = [
        file("o/odd", "a b.py", "\n\n\n  x = 1\n"),
        file("o/odd", "c.py", "<|file_sep|>text of that name\n"),
        file("o/odd", "d.py", "x"),
        file("o/odd", "é/ü.py", "π = 3\r\n\r\n\ty = '🙂'\r\n"),
    ]
    alone = [file("o/alone", "one.py", "print('alone')\n"), file("o/r0", "README.md", "Words about it.", "text")]
    return [*code, *odd, *alone]


def joined(files: list[Document], **options: int) -> list[RepositoryDocument]:
    return [d for d in repository_documents(files, **options) if isinstance(d, RepositoryDocument)]


def test_files_are_joined_by_repository_and_sorted_by_path(files: list[Document]) -> None:
    documents = list(repository_documents(files))
    repositories = {d.repo: d for d in documents if isinstance(d, RepositoryDocument)}
    assert set(repositories) == {"o/r0", "o/r1", "o/r2", "o/r3", "o/odd"}
    assert [f.path for f in repositories["o/odd"].files] == ["a b.py", "c.py", "d.py", "é/ü.py"]
    assert sorted(d.path for d in documents if isinstance(d, Document)) == ["README.md", "one.py"]
    total = sum(len(d.files) for d in repositories.values())
    assert total + 2 == len(files)
    shuffled = random.Random(0).sample(files, len(files))
    assert [d.id for d in joined(shuffled)] == [d.id for d in joined(files)]


def test_a_large_repository_is_cut_between_files(files: list[Document]) -> None:
    parts = [d for d in joined(files, max_bytes=2000) if d.repo == "o/r1"]
    assert len(parts) > 1
    assert len({d.id for d in parts}) == len(parts)
    assert [f.path for d in parts for f in d.files] == sorted(f.path for f in files if f.repo == "o/r1")
    assert all(len(d.files) == 1 or sum(len(f.text.encode()) for f in d.files) <= 2000 for d in parts)


@pytest.fixture(scope="module")
def shards(files: list[Document], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("repositories")
    write_shards(joined(files), tokenizer, folder, shard_bytes=10_000, syntax=True)
    return TokenShards(folder, tokenizer)


def test_the_ids_are_the_layout_of_starcoder(files: list[Document], shards: TokenShards, tokenizer: Tokenizer) -> None:
    name, separator = tokenizer.special["<|repo_name|>"], tokenizer.special["<|file_sep|>"]
    for number, document in enumerate(joined(files)):
        expected = [name, *tokenizer.encode(document.repo)]
        for own in document.files:
            expected += [separator, *tokenizer.encode(f"{own.path}\n{own.text}")]
        assert shards.document(number).tolist() == [*expected, tokenizer.eot_id]
        assert shards.byte_lengths[number] == len(document.text.encode())


def split(ids: list[int], separator: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    for index in ids:
        groups.append([]) if index == separator else groups[-1].append(index)
    return groups


@pytest.mark.parametrize("span", ["uniform", "line", "syntax"])
def test_one_file_is_permuted_behind_the_others(
    span: str, files: list[Document], shards: TokenShards, tokenizer: Tokenizer
) -> None:
    documents = joined(files)
    separator = tokenizer.special["<|file_sep|>"]
    config = PlanConfig(8192, 5, FimConfig(1.0, span=span))  # type: ignore[arg-type]
    chosen = set()
    for epoch in range(6):
        plan = plan_window(shards, tokenizer, range(shards.num_documents), config, epoch, 0)
        twin = plan_window_ref(shards, tokenizer, range(shards.num_documents), config, epoch, 0)
        assert plan.patches.tolist() == twin.patches.tolist()
        assert plan.span_source.tolist() == twin.span_source.tolist()
        for piece in pieces_of(plan, shards):
            assert piece.mode
            document = documents[piece.document]
            head, *groups = split(piece.ids, separator)
            assert head == [tokenizer.special["<|repo_name|>"], *tokenizer.encode(document.repo)]
            last = groups.pop()
            fim = min(last.index(i) for i in (tokenizer.fim_prefix_id, tokenizer.fim_suffix_id) if i in last)
            assert last[-1] == tokenizer.eot_id
            assert fim > 0  # the path stays in front
            shown = {tuple(tokenizer.encode(own.shown)): place for place, own in enumerate(document.files)}
            places = [shown[tuple(group)] for group in groups]  # the others whole, in their order
            assert places == sorted(places)
            (moved,) = set(range(len(document.files))) - set(places)
            chosen.add((piece.document, moved))
            middle, marker = piece.middle - (len(piece.ids) - len(last)), last.index(tokenizer.fim_middle_id)
            suffix = last[last.index(tokenizer.fim_suffix_id) + 1 : marker]
            prefix = (
                last[fim + 1 : last.index(tokenizer.fim_suffix_id)] if piece.mode == 1 else last[marker + 1 : middle]
            )
            pieces = [last[:fim], prefix, last[middle:-1], suffix]
            table = tokenizer.token_bytes
            text = b"".join(table[i] for part in pieces for i in part).decode()
            assert text == document.files[moved].shown
            for part in pieces[1:]:
                assert part == tokenizer.encode(b"".join(table[i] for i in part).decode())
    assert len(chosen) > 15


def test_a_vocabulary_without_the_separators_is_refused(
    files: list[Document], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kept = [token for token in tokenizer.definition["added_tokens"] if token["content"] != "<|file_sep|>"]
    with pytest.raises(MifyError, match="file_sep"):
        write_shards(joined(files), Tokenizer({**tokenizer.definition, "added_tokens": kept}), tmp_path)
