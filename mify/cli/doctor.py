"""`mify doctor`: what this machine has, what is used, and why the rest is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mify.doctor import Finding

_MARKS = {"used": ("green", "✓"), "there": ("cyan", "·"), "absent": ("yellow", "–"), "broken": ("bold red", "✗")}


def doctor(
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where work would be written; its disk is checked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the list.")] = False,
) -> None:
    """Say what this machine has, what mify will use, and why the rest is not used.

    Ends with exit code 1 when something that mify cannot do without is missing.
    """
    from mify import doctor as checks

    if as_json:
        findings = checks.diagnose(folder)
        typer.echo(json.dumps(checks.as_json(findings), indent=2))
    else:
        from rich.console import Console

        console = Console()
        with console.status("looking"):
            findings = checks.diagnose(folder)
        print_findings(console, findings)
    if checks.broken(findings):
        raise typer.Exit(1)


def print_findings(console: Console, findings: list[Finding]) -> None:
    """One block a part, one line a finding, its reason beside it and its remedy below."""
    from rich.markup import escape
    from rich.table import Table

    part = ""
    table: Table | None = None
    for finding in findings:
        if finding.part != part:
            if table is not None:
                console.print(table)
            part = finding.part
            console.print(f"\n[bold]{escape(part)}[/bold]")
            table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1, 0, 1))
            table.add_column(width=1)
            table.add_column(width=18, no_wrap=True)
            table.add_column(ratio=1)
        assert table is not None
        style, mark = _MARKS[finding.state]
        text = escape(finding.found)
        if finding.why:
            text += f" [dim]— {escape(finding.why)}[/dim]"
        if finding.remedy and finding.state in ("absent", "broken", "there"):
            text += f"\n[dim]→ {escape(finding.remedy)}[/dim]"
        table.add_row(f"[{style}]{mark}[/{style}]", finding.name, text)
    if table is not None:
        console.print(table)
    amiss = [finding for finding in findings if finding.state == "broken"]
    console.print()
    if amiss:
        names = ", ".join(finding.name for finding in amiss)
        console.print(f"[bold red]not ready[/bold red]: {escape(names)}", highlight=False)
    else:
        device = (
            "the GPU" if any(f.part == "GPU" and f.name != "GPU" and f.state == "used" for f in findings) else "the CPU"
        )
        console.print(f"[bold green]ready[/bold green]: models run on {device}", highlight=False)
