"""`mify train RECIPE`."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe that comes with mify (demo, …).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; run nothing.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a torch trace of five steps.")] = False,
) -> None:
    """Train a model by a recipe; run again, it resumes exactly.

    Any key of the recipe can be set: --optimizer.learning_rate=3e-4. On several GPUs:
    torchrun --nproc-per-node 8 -m mify.training.train RECIPE
    """
    from mify.training.train import main

    flags = [flag for flag, given in (("--dry-run", dry_run), ("--profile", profile)) if given]
    raise typer.Exit(main([recipe, *flags, *context.args]))
