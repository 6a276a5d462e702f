"""`mify tokenizer train`, `show` and `tiktoken`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a tokenizer, or look at one.", no_args_is_help=True)


@app.command()
def train(
    corpus: Annotated[Path, typer.Option(help="Documents (Parquet), as `mify curate` writes them.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json; Hugging Face loads it.")],
    vocab_size: Annotated[int, typer.Option(help="Ids in all: 128 special, 256 bytes, the rest merges.")] = 65536,
) -> None:
    """Train a byte-level BPE on a corpus, with the FIM, chat, tool and language tokens at fixed ids."""
    from rich.console import Console

    from mify.curation.documents import read_documents
    from mify.tokenizer import train_tokenizer

    console = Console()
    with console.status(f"training on {corpus}"):
        tokenizer = train_tokenizer((document.text for document in read_documents(corpus)), vocab_size)
        tokenizer.save(out)
    if tokenizer.vocab_size < vocab_size:
        console.print(f"[yellow]the corpus has pairs for {tokenizer.vocab_size} ids only, not {vocab_size}[/]")
    console.print(f"{tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint[:12]}, in {out}")


@app.command()
def show(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json, or its folder.")],
    text: Annotated[str, typer.Argument(help="Text to encode.")] = "",
) -> None:
    """Print what a tokenizer is, or how it cuts a text."""
    from rich.console import Console
    from rich.table import Table

    from mify.tokenizer import Tokenizer

    console = Console()
    loaded = Tokenizer.load(tokenizer)
    if text:
        table = Table("id", "token")
        for index in loaded.encode(text):
            table.add_row(str(index), repr(loaded.token_bytes[index].decode("utf-8", errors="backslashreplace")))
        console.print(table)
        return
    console.print(f"{loaded.vocab_size} ids, {len(loaded.special)} special, fingerprint {loaded.fingerprint}")
    spares = sum("spare" in name for name in loaded.special)
    names = [f"{index} {name}" for name, index in sorted(loaded.special.items(), key=lambda item: item[1])]
    console.print(", ".join(name for name in names if "spare" not in name), f"and {spares} spares", markup=False)


@app.command()
def tiktoken(
    tokenizer: Annotated[Path, typer.Argument(help="tokenizer.json, or its folder.")],
    corpus: Annotated[Path, typer.Option(help="Documents (Parquet) on which equal ids are proved.")],
    out: Annotated[Path, typer.Option(help="Folder for vocabulary.tiktoken and encoding.json.")],
) -> None:
    """Write the vocabulary for tiktoken, once it has given the same ids on every document."""
    from mify.curation.documents import read_documents
    from mify.export.tiktoken import export_tiktoken
    from mify.tokenizer import Tokenizer

    proved = export_tiktoken(Tokenizer.load(tokenizer), out, (document.text for document in read_documents(corpus)))
    print(f"{out}: the same ids on {proved} documents")
