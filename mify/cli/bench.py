"""`mify bench SUITE`: measure, set against rivals and targets, print, save, compare."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.console import Console

    from mify.bench.rows import Change, Row

_STYLES = {
    "pass": "green",
    "fail": "bold red",
    "not measured": "dim",
    "not comparable": "yellow",
    "predicted": "cyan",
}


def bench(
    suite: Annotated[
        str | None, typer.Argument(help="curation, data, kernels, fp8, decode, train, eval, or all.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows to FILE.")] = None,
    compare_file: Annotated[
        Path | None, typer.Option("--compare", metavar="OLD.json", help="Set this run against an earlier one.")
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the suites, or a suite's cases, and end.")] = False,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Run only cases that match; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small inputs: a minute instead of many.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds a case.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads, for what scales with them.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of generated inputs.")] = 0,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Real inputs, for suites that take them.")] = None,
) -> None:
    """Measure a part of mify against its rivals and targets, in one run on the same inputs.

    Ends with exit code 1 when a target is missed, or a figure is above what the machine can do.
    """
    from rich.console import Console

    from mify.bench import rows as bench_rows
    from mify.bench.suite import Options, Targets, available, load_suite, machine, run_suite, target_column

    console = Console()
    if suite is None:
        _list_suites(console)
        return
    suites = available() if suite == "all" else (suite,)
    modules = {name: load_suite(name) for name in suites}
    if list_cases:
        for name, module in modules.items():
            _print_cases(console, name, module.CASES)
        return
    old = bench_rows.read_rows(compare_file) if compare_file else None
    if data is not None and not data.is_dir():
        raise MifyError(f"--data {data} is not a folder", "pass a folder of files")
    rows: list[Row] = []

    def save(measured: list[Row]) -> None:
        if json_file is not None:
            bench_rows.write_results(json_file, rows + measured, machine=machine())

    for name in suites:
        column = target_column(name)
        with console.status(f"measuring {name}") as status:
            options = Options(
                suite=name, quick=quick, rounds=rounds, cases=tuple(case or ()), threads=threads, seed=seed, data=data,
                targets=Targets.load(column), say=status.update, save=save,
            )  # fmt: skip
            measured = run_suite(name, options)
        console.print(f"[bold]mify bench {name}[/bold] [dim]targets: column {column} of bench/targets.toml[/dim]")
        print_rows(console, measured)
        rows += measured
    if json_file is not None:
        bench_rows.write_results(json_file, rows, machine=machine())
        console.print(f"written: {json_file}")
        for module in modules.values():
            drawing = json_file.with_suffix(".png")
            if hasattr(module, "picture") and module.picture(drawing):
                console.print(f"written: {drawing}")
    if old is not None:
        print_changes(console, bench_rows.compare(old, rows))
    missed = bench_rows.failed(rows)
    for row in missed:
        console.print(f"[bold red]missed[/bold red] {row.case}: {row.metric} of {row.impl}; again: {row.repro}")
    if missed:
        raise typer.Exit(1)


def print_rows(console: Console, rows: list[Row]) -> None:
    """The rows by case, one line each: the figure beside its rival, its target and its verdict.

    What several rows have to say besides is numbered and stands below; what one alone has to say stands under it.
    """
    from rich.table import Table
    from rich.text import Text

    said = Counter(row.note for row in rows)
    notes: list[str] = []
    cells: list[tuple[str, list[Text], str]] = []
    for row in rows:
        mark, own = "", ""
        if row.note and said[row.note] == 1:
            own = row.note
        elif row.note and row.note != "the rival's own figure":
            if row.note not in notes:
                notes.append(row.note)
            mark = f" ({notes.index(row.note) + 1})"
        verdict = "" if row.note == "the rival's own figure" else row.status
        cells.append(
            (
                row.case,
                [
                    Text(row.impl),
                    Text(row.metric),
                    Text("–" if row.value is None else f"{figure(row.value)} {row.unit}", justify="right"),
                    Text(_against(row)),
                    Text(_shown(row.target)),
                    Text(verdict, style=_STYLES[row.status]) + Text(mark, style="dim"),
                ],
                own,
            )
        )
    widths = [max((line[column].cell_len for _, line, _ in cells), default=0) for column in range(6)]
    # A narrow terminal folds the names, never the figures.
    spare = sum(widths) + 2 * len(widths) - console.width
    for column, least in ((1, 14), (0, 14), (3, 12)):
        cut = max(0, min(spare, widths[column] - least))
        widths[column], spare = widths[column] - cut, spare - cut
    before = None
    for case, line, own in cells:
        if case != before:
            console.print(f"\n[bold]{case}[/bold]", highlight=False)
            before = case
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1))
        for width in widths:
            table.add_column(width=width, overflow="fold")
        table.add_row(*line)
        console.print(table)
        if own:
            console.print(f"    {own}", style="dim", highlight=False)
    console.print()
    for number, note in enumerate(notes, 1):
        console.print(f"({number}) {note}", style="dim", highlight=False)


def _against(row: Row) -> str:
    if row.rival is None:
        return ""
    return (
        f"{row.ratio:.2f}× {row.rival} {figure(row.rival_value)}"
        if row.ratio
        else f"{row.rival} {figure(row.rival_value)}"
    )


def _shown(target: str | None) -> str:
    """ "ratio >= 1.1" as "≥ 1.1×", "value <= 5.5" as "≤ 5.5"."""
    if target is None:
        return ""
    of, comparison, bound = target.split()
    return f"{'≥' if comparison == '>=' else '≤'} {bound}{'×' if of == 'ratio' else ''}"


def print_changes(console: Console, changes: list[Change]) -> None:
    """A table of the figures that an earlier run has too."""
    from rich.table import Table

    if not changes:
        console.print("nothing to compare: no figure was measured in both runs", style="yellow")
        return
    table = Table("case", "impl", "metric", "then", "now", "better by", header_style="bold", pad_edge=False)
    for change in changes:
        style = "red" if change.times_better < 0.97 else "green" if change.times_better > 1.03 else "dim"
        row = change.row
        table.add_row(
            row.case, row.impl, row.metric, f"{figure(change.old_value)} {row.unit}", f"{figure(row.value)} {row.unit}",
            f"[{style}]{change.times_better:.3f}×[/{style}]",
        )  # fmt: skip
    console.print(table)


def figure(value: float | None) -> str:
    """Four significant digits, thousands separated."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return text if "e" not in text else f"{value:.2e}"


def _list_suites(console: Console) -> None:
    from mify.bench.suite import available, load_suite

    for name in available():
        cases = len(load_suite(name).CASES)
        console.print(f"[bold]{name}[/bold]  {cases} cases; `mify bench {name} --list` names them")


def _print_cases(console: Console, suite: str, cases: dict[str, str]) -> None:
    from rich.table import Table

    table = Table("case", "what it measures", title=f"mify bench {suite}", header_style="bold", pad_edge=False)
    for name, what in cases.items():
        table.add_row(name, what)
    console.print(table)
