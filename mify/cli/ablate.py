"""`mify ablate mix | fim | scale`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mify.training.ablate import Result
    from mify.training.scaling import Fit


class Study(StrEnum):
    """What is ablated."""

    mix = "mix"
    fim = "fim"
    scale = "scale"


def ablate(
    context: typer.Context,
    study: Annotated[Study, typer.Argument(help="mix: the mixture; fim: the FIM rate; scale: a ladder of sizes.")],
    data: Annotated[
        Path, typer.Option(help="A folder with tokens/code, tokens/text, tokens/math and corpus/held_out.parquet.")
    ] = Path("mify-demo"),
    out: Annotated[Path | None, typer.Option(help="Where the runs go. Default: runs/ablate-STUDY.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.", min=1)] = 3,
    recipe: Annotated[str, typer.Option(help="The recipe of a run: cpt-350m with --steps=… on GPUs.")] = "",
    held_out_bytes: Annotated[int, typer.Option(help="Held-out bytes per domain.", min=1)] = 100_000,
) -> None:
    """Compare training choices by paired runs, with intervals; run again, it goes on.

    Keys of the recipe can be set for all runs: --steps=120 --optimizer.learning_rate=1e-3.
    """
    from rich.console import Console

    from mify.errors import MifyError
    from mify.training import ablate as ablation
    from mify.training import scaling
    from mify.training.config import EvaluationSection
    from mify.training.evaluate import HeldOut

    console = Console(highlight=False)
    folder = out if out is not None else Path("runs") / f"ablate-{study.value}"
    parquet = data / "corpus" / "held_out.parquet"
    if not parquet.is_file() or not (data / "tokens").is_dir():
        raise MifyError(
            f"{data} has no tokens/ and corpus/held_out.parquet",
            "run `mify demo` first and give its folder with --data",
        )
    lines = 200 if study is Study.fim else 0
    held_out = HeldOut.load(
        EvaluationSection(held_out=str(parquet), max_bytes_per_domain=held_out_bytes, infilling=lines)
    )

    def say(message: str) -> None:
        console.print(message, markup=False)

    tokens = data / "tokens"
    if study is Study.scale:
        found = scaling.run_ladder(tokens, held_out, folder, overrides=context.args, say=say)
        _show_curve(found, folder, console)
        return
    make = ablation.mix_study if study is Study.mix else ablation.fim_study
    plan = make(tokens, recipe) if recipe else make(tokens)
    result = ablation.run_study(plan, held_out, folder, seeds=range(1, seeds + 1), overrides=context.args, say=say)
    _show(result, folder, console)


def _show(result: Result, folder: Path, console: object) -> None:
    from importlib import util

    from rich.console import Console
    from rich.table import Table

    from mify.training.ablate import conclusion, plot

    assert isinstance(console, Console)
    table = Table("held-out", "variant", result.study.variants[0].name, "variant's", "difference", "95%", "verdict")
    for d in result.differences:
        table.add_row(
            d.metric, d.variant, f"{d.baseline_value:.4f}", f"{d.value:.4f}", f"{d.mean:+.4f}",
            f"{d.low:+.4f} … {d.high:+.4f}", d.verdict,
        )  # fmt: skip
    console.print(table)
    for name, value in result.exact_match.items():
        console.print(f"exact match of infilled lines, {name}: {value:.1%}", markup=False)
    console.print(conclusion(result), markup=False)
    if util.find_spec("matplotlib") is not None:
        plot(result, folder / "ablation.png")
        console.print(f"{folder / 'ablation.png'}", markup=False)
    console.print(f"{folder / 'ablation.json'}", markup=False)


def _show_curve(found: Fit, folder: Path, console: object) -> None:
    from importlib import util

    from rich.console import Console
    from rich.table import Table

    from mify.training import scaling

    assert isinstance(console, Console)
    table = Table("run", "parameters", "tokens", "bits per byte", "fitted")
    for point in found.points:
        fitted = found.curve(point.parameters, point.tokens)
        table.add_row(
            point.name, f"{point.parameters:,}", f"{point.tokens:,}", f"{point.loss:.4f}", f"{fitted:.4f}"
        )  # fmt: skip
    console.print(table)
    for name in ("e", "a", "alpha", "b", "beta"):
        low, high = found.interval(lambda curve, name=name: float(getattr(curve, name)))  # type: ignore[misc]
        console.print(f"{name} = {getattr(found.curve, name):.4g}  [{low:.4g}, {high:.4g}]", markup=False)
    console.print(f"residual: {found.residual:.2%} of the loss (root mean square)", markup=False)
    console.print(scaling.conclusion(found), markup=False)
    if util.find_spec("matplotlib") is not None:
        scaling.plot(found, folder / "scale.png")
        console.print(f"{folder / 'scale.png'}", markup=False)
    console.print(f"{folder / 'scale.json'}", markup=False)
