"""The typer application. Every command lives in a module of its own and is imported when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import mify
from mify.errors import MifyError

app = typer.Typer(
    name="mify",
    help="From raw code to a small code model that runs: curate, tokenize, pack, train, evaluate, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mify {mify.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Runs one command. Returns its exit code: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted."""
    try:
        code = app(arguments, standalone_mode=False)
    except MifyError as error:
        print(f"mify: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("\nmify: interrupted; run the command again to continue", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0
