"""`mify demo`: the whole way, from the code of this machine's own Python installation to a model that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_FOLDER = Path("mify-demo")


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything goes.")] = DEFAULT_FOLDER,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draw, the split, the weights and the order.")] = 0,
    megabytes: Annotated[float, typer.Option(min=0.5, help="How much to collect, in MB.")] = 48.0,
    vocab_size: Annotated[int, typer.Option(min=512, max=65536, help="Tokens of the vocabulary.")] = 4096,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; the recipe's by default.", show_default=False)
    ] = None,
    problems: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many of HumanEval.", show_default=False)
    ] = None,
    post: Annotated[
        bool, typer.Option("--post", help="Go on to SFT, DPO and GRPO: some minutes more.", show_default=False)
    ] = False,
) -> None:
    """Curate, tokenize, pack, train, evaluate and export a small model, on real code, in minutes.

    Stop it whenever you like: run again, it continues. It ends with the path of a report page.
    """
    import shutil

    from rich.console import Console

    from mify.cli.demo.pipeline import run_stages
    from mify.cli.demo.stages import DemoConfig, demo_stages
    from mify.cli.demo.summary import report_data
    from mify.errors import MifyError

    if out.exists() and not out.is_dir():
        raise MifyError(f"{out} is a file", "name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "stages").is_dir():
        raise MifyError(f"{out} holds something else than a demo", "name another folder with --out")
    if fresh and out.exists():
        shutil.rmtree(out)
    console = Console()
    config = DemoConfig(seed, int(megabytes * 1e6), vocab_size, steps, problems)
    stages = demo_stages(config)
    if post:
        from mify.cli.demo.post_stages import PostConfig, post_stages

        stages += post_stages(PostConfig(seed))
    stamps = run_stages(stages, out, console)
    from mify.cli.demo.report import write_report

    write_report(report_data(config, stamps, out), out)
    console.print(f"\n[bold]{out / 'report.html'}[/]  the report, with its pictures beside it", highlight=False)
    console.print(f'[dim]go on: mify generate {out}/export/hf "def fibonacci(n):"[/]', highlight=False)
