"""`mify curate`: files, repositories and tables in; a corpus, its rejected documents and a report out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.console import Console


def curate(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, repositories, .jsonl(.gz/.zst) or .parquet files; of tables also URLs (fsspec).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder or URL for documents.parquet, rejected.parquet, report.json.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Rules and thresholds (TOML).", show_default=False, metavar="TOML")
    ] = None,
    python_installation: Annotated[
        bool, typer.Option("--python-installation", help="Curate this machine's own Python installation.")
    ] = False,
    interpreter: Annotated[
        Path | None,
        typer.Option(help="With --python-installation: of this interpreter instead.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="With --python-installation: how much to collect.")
    ] = 48_000_000,
    max_file_bytes: Annotated[int, typer.Option(min=1, help="A larger file is rejected.")] = 1_000_000,
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the documents kept from training.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the draw and of the held-out split.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all processors by default.", show_default=False)
    ] = None,
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", help="Where the work runs: local (this machine) or ray (a cluster; extra ray)."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster, as ray.init takes it; default: RAY_ADDRESS, else one here.", show_default=False
        ),
    ] = None,
    work_folder: Annotated[
        Path | None,
        typer.Option(help="Intermediate files (twice the text); for ray on a shared disk.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    partitions: Annotated[int, typer.Option(min=0, help="Ranges of ids; 0: by size. Changes no result.")] = 0,
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Of the output: parquet, jsonl, jsonl.gz or jsonl.zst.")
    ] = "parquet",
    files: Annotated[int, typer.Option(min=1, help="Into how many files documents are cut.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the funnel; write nothing.")] = False,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Decontaminate against this benchmark (.jsonl, .json, .gz), too; may be repeated.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare candidate pairs of near-duplicates exactly. Without it the signatures decide, with the"
            " standard error that the report states: pairs below the threshold go, and pairs above it stay.",
        ),
    ] = True,
    explain: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Say why a document of --out stayed or went (id or path).", show_default=False),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all rules and values (TOML).")] = False,
) -> None:
    """Curate code, text and mathematics: license, quality, duplicates, decontamination, mixture.

    Every rejected document is kept beside the corpus with its stage, its reason and the evidence.
    """
    from dataclasses import replace

    from rich.console import Console

    from mify.curation.config import CurationConfig, config_to_toml, load_config

    console = Console()
    settings = load_config(config) if config else CurationConfig()
    if benchmark:
        rules = settings.decontamination
        named = (*rules.benchmarks, *(name for name in benchmark if name not in rules.benchmarks))
        settings = replace(settings, decontamination=replace(rules, benchmarks=named))
    if not verify:
        settings = replace(settings, near_duplicates=replace(settings.near_duplicates, verify=False))
    if print_config:
        console.print(config_to_toml(settings), highlight=False, markup=False, soft_wrap=True)
        return
    if explain is not None:
        from mify.curation.explain import explain as look_up
        from mify.curation.locations import located

        if out is None:
            raise MifyError("--explain needs the folder of a curation", "give it with --out")
        for found in look_up(located(out), explain):
            console.print("\n".join(found.lines()), highlight=False, markup=False, soft_wrap=True)
        return
    if not paths and not python_installation:
        raise MifyError("nothing to curate was named", "give paths, or --python-installation")
    if paths and python_installation:
        raise MifyError("paths and --python-installation exclude each other", "give one of them")
    if out is None and not dry_run:
        raise MifyError("no output folder was named", "give one with --out, or look first with --dry-run")

    from mify.curation.engines import open_engine
    from mify.curation.funnel import guard_sources
    from mify.curation.installed_files import Installation
    from mify.curation.locations import join, located
    from mify.curation.outputs import output_options
    from mify.curation.pipeline import check_folder
    from mify.curation.pipeline import curate as run
    from mify.curation.python_installation import CollectionConfig, collect
    from mify.curation.readers import Limits, list_pieces
    from mify.curation.sharded.run import FileInputs, ShardOptions
    from mify.curation.workers import usable_cpus

    output = output_options(form, files)
    place = located(out or "")
    if out is not None and not dry_run:
        check_folder(place)
    pieces = list_pieces([located(path) for path in paths or []])
    count = workers or usable_cpus()
    machine = open_engine(engine, count if engine == "local" else workers or 0, address)
    try:
        with _progress(console) as report:
            if python_installation:
                installation = Installation.of_interpreter(interpreter) if interpreter else None
                collected = collect(
                    installation,
                    CollectionConfig(max_bytes, held_out, seed=seed, max_file_bytes=max_file_bytes),
                    num_workers=count,
                    progress=report,
                )
            result = run(
                collected.inputs()
                if python_installation
                else FileInputs(pieces, Limits(max_file_bytes), held_out, seed),
                place,
                settings,
                report,
                held_out=collected.held_out if python_installation else (),
                dry_run=dry_run,
                collection=collected.report if python_installation else None,
                engine=machine,
                output=output,
                shards=ShardOptions(partitions),
                work=work_folder,
                resume=resume,
            )
    finally:
        machine.close()
    result.print(console)
    if dry_run:
        try:
            guard_sources(result.data, settings.guard.max_source_loss, settings.guard.min_documents)
        except MifyError as error:
            console.print(f"[yellow]without --dry-run the guard stops here:[/] {error.problem}", highlight=False)
    seconds = sum(result.seconds.values())
    console.print(f"{result.headline()} in {seconds:.1f} s", highlight=False)
    if resume:
        console.print(f"{result.tasks['resumed']:,} of {result.tasks['all']:,} tasks were done before", highlight=False)
    if result.tasks["lost_workers"]:
        console.print(f"{result.tasks['lost_workers']:,} workers died; their tasks were run again", highlight=False)
    if result.folder is not None:
        for name in (output.names("documents")[0], "report.html"):
            console.print(f"[bold]{join(result.folder, name)}[/]", highlight=False, soft_wrap=True)
        if not result.data["totals"]["kept"]["documents"]:  # what comes next must not take this for data
            typer.echo("mify: no document was kept; the report says why", err=True)
            raise typer.Exit(1)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, in the order in which they begin."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("[bold]{task.description:<17}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {"read": bars.add_task("read", total=None)}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance
