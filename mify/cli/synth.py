"""`mify synth RECIPE`: samples from endpoints, validated in stages, judged, written as conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.console import Console


def _example(value: bool) -> None:
    if value:
        from mify.post.synth.recipe import EXAMPLE

        typer.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)
        raise typer.Exit()


def _kinds(value: bool) -> None:
    if value:
        from mify.post.synth.recipe import kinds_in_words

        typer.echo(kinds_in_words())
        raise typer.Exit()


def synth(
    recipe: Annotated[
        Path | None, typer.Argument(help="Endpoints, budget and stages (TOML).", show_default=False, metavar="RECIPE")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="synth/RECIPE by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and cost; ask nothing.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make stages again whose settings changed; answers that are there stay."),
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", callback=_example, is_eager=True, help="Print a recipe and end.")
    ] = False,
    kinds: Annotated[
        bool, typer.Option("--kinds", callback=_kinds, is_eager=True, help="List the kinds of stages and end.")
    ] = False,
) -> None:
    """Make training conversations with models behind endpoints.

    mify synth --example > recipe.toml, then mify synth recipe.toml --dry-run, then without.

    Run it again and it continues where it stopped: no answer is asked for twice. The result is
    FOLDER/conversations.jsonl, and safety.jsonl where harmful requests are answered; FOLDER/report.html tells what fell
    where and why, and how far the judges can be trusted.
    """
    from rich.console import Console

    from mify.post.synth.recipe import load_recipe
    from mify.post.synth.run import run

    if recipe is None:
        raise MifyError("no recipe is given", "mify synth --example prints one to begin with")
    read = load_recipe(recipe)
    console = Console()
    if dry_run:
        from mify.post.synth.plan import plan

        _print_plan(console, plan(read))
        return
    folder = out or Path("synth") / recipe.stem
    with console.status("") as status:
        result = run(
            read,
            folder,
            rebuild=rebuild,
            progress=lambda name, done, total: status.update(f"{name} {done:,}/{total:,}"),
        )
    _print_report(console, result.report)
    console.print(f"report: {folder / 'report.html'}", style="dim", highlight=False)
    if result.stopped:
        typer.echo(f"mify: {result.stopped}", err=True)
        raise typer.Exit(1)
    console.print(f"conversations: {folder / 'conversations.jsonl'}", style="dim", highlight=False)


def _print_plan(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    names = ("requests", "tokens answered", "cost")
    table = Table("stage", "kind", "takes", *names, header_style="bold", caption="each at most, as if nothing fell")
    for row in rows:
        figures = (f"{row['requests']:,}", f"{row['tokens']:,}", f"{row['cost']:.4g}")
        asked = figures if row["requests"] else ("", "", "")
        table.add_row(row["stage"], row["kind"], ", ".join(row["inputs"]), *asked)
    total = {name: sum(row[name] for row in rows) for name in ("requests", "tokens", "cost")}
    table.add_section()
    table.add_row("all", "", "", f"{total['requests']:,}", f"{total['tokens']:,}", f"{total['cost']:.4g}")
    console.print(table)


def _print_report(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    from mify.post.synth.report_page import judge_verdict, tiles

    table = Table("stage", "in", "kept", "rejected", header_style="bold")
    for row in report["stages"]:
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(row["rejected"].items(), key=lambda r: -r[1])
        )
        table.add_row(row["name"], f"{row['in']:,}", f"{row['kept']:,}", reasons)
    console.print(table)
    for row in report["stages"]:
        if row["kind"] == "judge":
            console.print(f"{row['name']}: {judge_verdict(row['facts'])}", highlight=False)
        if row["unanswered"]:
            console.print(
                f"{row['name']}: {row['unanswered']:,} requests had no answer; run again and they are asked again",
                style="red",
                highlight=False,
            )
    console.print(", ".join(f"{figure} {meaning}" for figure, meaning in tiles(report)), style="dim", highlight=False)
