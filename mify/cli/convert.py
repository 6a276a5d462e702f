"""`mify convert`: conversations from the formats that people have to the one that is trained on, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def convert(
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders: .jsonl, .json, .parquet.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write: a .jsonl for each input, and rejects/.")],
    source_format: Annotated[
        str,
        typer.Option(
            "--from",
            help="mify, openai, hermes, sharegpt, chatml, xlam, glaive, bfcl, magicoder, alpaca; or auto.",
        ),
    ] = "auto",
    target_format: Annotated[str, typer.Option("--to", help="One of the same.")] = "mify",
    source: Annotated[str, typer.Option(help="Given to conversations without one.")] = "",
    category: Annotated[str, typer.Option(help="Given to conversations without one.")] = "",
    prompts: Annotated[bool, typer.Option("--prompts", help="Keep those in which nobody answers, too.")] = False,
    on_bad: Annotated[str, typer.Option("--on-bad", help="reject: count it and go on; stop.")] = "reject",
) -> None:
    """Convert conversations, check turns, functions and calls, and count the rejects by reason.

    What is done already is not done again. SFT reads the folder: --data.sources.NAME.path=OUT.
    """
    from rich.console import Console
    from rich.table import Table

    from mify.post.convert import Options, convert_files

    console = Console(highlight=False)
    bad: Any = on_bad
    options = Options(source_format, target_format, source, category, prompts, bad)
    tally = convert_files(inputs, out, options, lambda message: console.print(message, markup=False))
    if tally.reasons:
        table = Table("rejected because", "rows", "share", "for example")
        for reason, count in tally.reasons.most_common():
            example = tally.examples[reason][0]
            table.add_row(reason.replace("_", " "), f"{count:,}", f"{count / tally.rows:.2%}", example)
        console.print(table)
    console.print(f"{out}: {tally.kept:,} conversations of {tally.rows:,} rows", markup=False, soft_wrap=True)
    if tally.rows and not tally.kept:
        raise typer.Exit(1)
