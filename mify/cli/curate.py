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
        list[Path] | None,
        typer.Argument(help="Folders, repositories, .jsonl(.gz/.zst) or .parquet files.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for documents.parquet, rejected.parquet and report.json.", show_default=False),
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the funnel; write nothing.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Say why a document of --out stayed or went (id or path).", show_default=False),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all rules and values (TOML).")] = False,
) -> None:
    """Curate code, text and mathematics: license, quality, duplicates, decontamination, mixture.

    Every rejected document is kept beside the corpus with its stage, its reason and the evidence.
    """
    from rich.console import Console

    from mify.curation.config import CurationConfig, config_to_toml, load_config

    console = Console()
    settings = load_config(config) if config else CurationConfig()
    if print_config:
        console.print(config_to_toml(settings), highlight=False, markup=False, soft_wrap=True)
        return
    if explain is not None:
        from mify.curation.explain import explain as look_up

        if out is None:
            raise MifyError("--explain needs the folder of a curation", "give it with --out")
        for found in look_up(out, explain):
            console.print("\n".join(found.lines()), highlight=False, markup=False, soft_wrap=True)
        return
    if not paths and not python_installation:
        raise MifyError("nothing to curate was named", "give paths, or --python-installation")
    if paths and python_installation:
        raise MifyError("paths and --python-installation exclude each other", "give one of them")
    if out is None and not dry_run:
        raise MifyError("no output folder was named", "give one with --out, or look first with --dry-run")

    from mify.curation.documents import Document
    from mify.curation.held_out import split_held_out
    from mify.curation.installed_files import Installation
    from mify.curation.pipeline import check_folder
    from mify.curation.pipeline import curate as run
    from mify.curation.python_installation import CollectionConfig, collect
    from mify.curation.readers import Limits, read_inputs
    from mify.curation.workers import usable_cpus

    count = workers or usable_cpus()
    if out is not None and not dry_run:
        check_folder(out)
    with _progress(console) as report:
        if python_installation:
            installation = Installation.of_interpreter(interpreter) if interpreter else None
            collected = collect(
                installation,
                CollectionConfig(max_bytes, held_out, seed=seed, max_file_bytes=max_file_bytes),
                num_workers=count,
                progress=report,
            )
            inputs, kept_back, source = collected.inputs(), collected.held_out, collected.report
        else:
            entries = list(read_inputs(paths or [], Limits(max_file_bytes)))
            documents = [entry for entry in entries if isinstance(entry, Document)]
            train, kept_back = split_held_out(documents, fraction=held_out, min_documents=0, seed=seed)
            inputs, source = [*train, *(entry for entry in entries if not isinstance(entry, Document))], None
        result = run(
            inputs,
            out or Path(),
            settings,
            report,
            held_out=kept_back,
            num_workers=count,
            dry_run=dry_run,
            collection=source,
        )
    result.print(console)
    seconds = sum(result.seconds.values())
    console.print(f"{result.headline()} in {seconds:.1f} s", highlight=False)
    if result.folder is not None:
        console.print(f"[bold]{result.folder / 'documents.parquet'}[/]", highlight=False)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that follows the stages."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("[bold]{task.description:<17}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("read", total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)
