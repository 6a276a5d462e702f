"""The typer application."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

import mify
from mify.cli.ablate import ablate
from mify.cli.bench import bench
from mify.cli.chat import chat
from mify.cli.convert import convert
from mify.cli.curate import curate
from mify.cli.demo import demo
from mify.cli.doctor import doctor
from mify.cli.eval import evaluate
from mify.cli.export import export
from mify.cli.generate import generate
from mify.cli.import_ import import_
from mify.cli.plan import plan
from mify.cli.quantize import quantize
from mify.cli.serve import serve
from mify.cli.synth import synth
from mify.cli.tokenize import tokenize
from mify.cli.tokenizer import app as tokenizer
from mify.cli.train import train
from mify.errors import MifyError


class _Commands(typer.core.TyperGroup):
    """Exit codes that scripts can use: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MifyError as error:
            typer.echo(f"mify: {error}", err=True)
            raise typer.Exit(2) from None
        except ValueError as error:
            from mify.kernels.dispatch import BackendError

            if not isinstance(error, BackendError):
                raise
            typer.echo(f"mify: {error}\n  -> unset MIFY_IMPL, or name what `mify doctor` says runs here", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("\nmify: interrupted; run the command again to continue", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="mify",
    cls=_Commands,
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# One module a command, imported at the top but importing nothing heavy itself, so that `mify --help` answers at once.
# In the order of the work, which is the order of `mify --help`.
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}  # --key.sub=value, read by the recipe
app.command()(demo)
app.command()(curate)
app.add_typer(tokenizer, name="tokenizer")
app.command()(tokenize)
app.command()(convert)
app.command()(synth)
app.command(context_settings=OVERRIDES)(train)
app.command(context_settings=OVERRIDES)(ablate)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(chat)
app.command("import")(import_)
app.command()(quantize)
app.command()(export)
app.command()(serve)
app.command()(bench)
app.command()(plan)
app.command()(doctor)
