"""`mify tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mify.errors import MifyError


def tokenize(
    corpus: Annotated[Path | None, typer.Option(help="Documents (Parquet), as `mify curate` writes them.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, or its folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the shards.")] = None,
    inspect: Annotated[Path | None, typer.Option(help="Show what shards hold, and a document back.")] = None,
    document: Annotated[
        str, typer.Option(help="With --inspect: number of a document, or the beginning of its id (16 digits).")
    ] = "",
    verify: Annotated[bool, typer.Option("--verify", help="With --inspect: hash every file.")] = False,
    language_separators: Annotated[
        bool, typer.Option("--language-separators", help="Begin each document with its <|lang:NAME|>.")
    ] = False,
    repositories: Annotated[
        bool, typer.Option("--repositories", help="Join the code files of each repository into one document.")
    ] = False,
    syntax: Annotated[
        bool, typer.Option("--syntax", help="Store syntax nodes too, for FIM that cuts around them (tree-sitter).")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Shards written at once; the result is the same.")] = 1,
    shard_bytes: Annotated[int, typer.Option(help="Text per shard, in bytes.")] = 256 << 20,
) -> None:
    """Turn documents into memory-mapped token shards; run again, it keeps the shards that are whole."""
    if inspect is not None:
        _inspect(inspect, document, verify)
        return
    if corpus is None or tokenizer is None or out is None:
        missing = [n for n, v in (("--corpus", corpus), ("--tokenizer", tokenizer), ("--out", out)) if v is None]
        raise MifyError(f"{', '.join(missing)} not given", "mify tokenize --corpus X --tokenizer Y --out Z")
    from rich.console import Console

    from mify.curation.documents import read_documents
    from mify.data.repositories import repository_documents
    from mify.data.shards import write_shards
    from mify.tokenizer import Tokenizer

    console = Console()
    with console.status("tokenizing") as status:
        done = 0

        def show(documents: int) -> None:
            nonlocal done
            done += documents
            status.update(f"tokenizing: {done} documents")

        documents = read_documents(corpus)
        report = write_shards(
            repository_documents(documents) if repositories else documents,
            Tokenizer.load(tokenizer),
            out,
            shard_bytes=shard_bytes,
            language_separators=language_separators,
            syntax=syntax,
            threads=threads,
            progress=show,
        )
    kept = f" ({report.shards_kept} shards were there already)" if report.shards_kept else ""
    console.print(
        f"{report.documents} documents, {report.tokens} tokens, {report.bytes_per_token:.2f} bytes/token{kept}"
    )
    for name, tokens in report.tokens_by_domain.items():
        if tokens:
            size = report.bytes_by_domain[name]
            console.print(f"  {name:5} {tokens:>13} tokens {size:>13} bytes {size / tokens:6.2f} bytes/token")
    if report.empty:
        console.print(f"{report.empty} documents had no text and were left out")


def _inspect(folder: Path, document: str, verify: bool) -> None:
    from mify.data.shards import TokenShards
    from mify.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    shards = TokenShards(folder, tokenizer, verify or None)
    print(
        f"{shards.num_documents} documents, {shards.num_tokens} tokens ({shards.dtype.name}) in {len(shards.tokens)} "
        f"shards; vocabulary {shards.vocab_size}; content {shards.content[:12]}{', verified' if verify else ''}"
    )
    if shards.nodes is not None:
        print(f"{len(shards.nodes)} syntax nodes; grammars: {', '.join((shards.syntax or {}).values())}")
    if not document:
        return
    index = _number_of(document, shards.document_ids, folder)
    ids = shards.document(index).tolist()
    domain = shards.domain_names[shards.domains[index]]
    print(
        f"document {index}: id {int(shards.document_ids[index]):016x}…, {domain}, {len(ids)} tokens, "
        f"{shards.byte_lengths[index]} bytes"
    )
    print(tokenizer.decode(ids))


def _number_of(document: str, keys: Any, folder: Path) -> int:
    """The document meant by a number, or by the first 16 or all digits of an id."""
    import numpy as np

    if document.isdigit() and len(document) < 16:
        return int(document)
    try:
        key = int(document[:16], 16) if len(document) >= 16 else None
    except ValueError:
        key = None
    if key is None:
        raise MifyError(
            f"--document {document!r} is no number and no id", "give one of the two, an id's first 16 digits"
        )
    found = np.flatnonzero(keys == np.uint64(key))
    if not len(found):
        raise MifyError(f"{folder} has no document whose id begins with {document[:16]}", "check the id")
    return int(found[0])
