"""`mify ablate mix | fim | scale | quant | sft-scale | grpo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mify.training.ablate import Result
    from mify.training.ablate_grpo import Row as GrpoRow
    from mify.training.ablate_quant import Row
    from mify.training.ablate_sft import Step
    from mify.training.scaling import Fit


class Study(StrEnum):
    """What is ablated."""

    mix = "mix"
    fim = "fim"
    scale = "scale"
    quant = "quant"
    sft_scale = "sft-scale"
    grpo = "grpo"


def ablate(
    context: typer.Context,
    study: Annotated[
        Study,
        typer.Argument(
            help="mix: the mixture; fim: the FIM rate; scale: a ladder of sizes; quant: FP8 against AWQ; sft-scale: "
            "growing numbers of conversations; grpo: reinforcement learning on verifiable tasks against controls."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="A folder with tokens/code, tokens/text, tokens/math and corpus/held_out.parquet.")
    ] = Path("mify-demo"),
    out: Annotated[Path | None, typer.Option(help="Where the runs go. Default: runs/ablate-STUDY.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.", min=1)] = 3,
    recipe: Annotated[str, typer.Option(help="The recipe of a run: cpt-350m with --steps=… on GPUs.")] = "",
    held_out_bytes: Annotated[
        int | None, typer.Option(help="Held-out bytes per domain. Default: 100,000; quant: 8,000.", min=1)
    ] = None,
    infilling_lines: Annotated[int, typer.Option(help="fim: held-out lines to infill.", min=1)] = 200,
    rungs: Annotated[
        str, typer.Option(help="scale: sizes as layers x hidden x FFN: 12x768x2048,16x1024x2816. Default: four tiny.")
    ] = "",
    budgets: Annotated[
        str, typer.Option(help="scale: steps after which a branch decays, with commas. Default: 60,120,240.")
    ] = "",
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="quant: what is quantized, again for more; sft-scale: what is tuned. Default: the demo's run."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="quant: with commas.")] = "fp8,fp8-weight,fp8-block,awq8,int8,awq4",
    problems: Annotated[
        int, typer.Option(help="quant: HumanEval problems, the first so many (164 on a GPU); 0: none.", min=0, max=164)
    ] = 10,
    samples: Annotated[
        int,
        typer.Option(
            help="quant: answers a problem: the greedy one, or several at temperature 0.2, which tell more.", min=1
        ),
    ] = 1,
    conversations: Annotated[
        Path | None, typer.Option(help="sft-scale: .jsonl, or a folder of them, as mify convert writes it.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="sft-scale: growing numbers of conversations, with commas. Default: an eighth, doubled.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="sft-scale: of each run over its own conversations.", min=1)] = 2,
    held_out: Annotated[int, typer.Option(help="sft-scale: conversations that are measured.", min=8)] = 100,
) -> None:
    """Compare training choices by paired runs, with intervals; run again, it goes on.

    Keys of the recipe can be set for all runs: --steps=120 --optimizer.learning_rate=1e-3. On several GPUs:
    torchrun --nproc-per-node 8 -m mify ablate mix --recipe cpt-350m
    """
    import os

    from rich.console import Console

    from mify.errors import MifyError
    from mify.training import ablate as ablation
    from mify.training import scaling
    from mify.training.config import EvaluationSection
    from mify.training.evaluate import HeldOut

    console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # under torchrun one rank speaks
    folder = out if out is not None else Path("runs") / f"ablate-{study.value}"

    def say(message: str) -> None:
        console.print(message, markup=False)

    if study is Study.sft_scale:
        from mify.training import ablate_sft

        if conversations is None:
            raise MifyError("sft-scale needs conversations", "give --conversations FOLDER, which `mify convert` writes")
        words = [size.strip() for size in sizes.split(",") if size.strip()]
        if not all(word.isdecimal() for word in words):
            raise MifyError(f"--sizes {sizes} are no whole numbers", "give them as 100,200,400")
        ladder = [int(word) for word in words]
        steps = ablate_sft.run_sft_scale(
            conversations, (model or [data / "export" / "hf"])[0], folder, sizes=ladder, seeds=range(1, seeds + 1),
            epochs=epochs, held_out=held_out, recipe=recipe or "ablate-sft", overrides=context.args, say=say,
        )  # fmt: skip
        _show_sft_scale(steps, folder, console)
        return
    if study is Study.grpo:  # makes its own data
        from mify.training import ablate_grpo

        arms = ablate_grpo.run_grpo_study(folder, seeds=range(1, seeds + 1), overrides=context.args, say=say)
        _show_grpo(arms, folder, console)
        return
    parquet = data / "corpus" / "held_out.parquet"
    if not parquet.is_file() or not (data / "tokens").is_dir():
        raise MifyError(
            f"{data} has no tokens/ and corpus/held_out.parquet",
            "run `mify demo` first and give its folder with --data",
        )
    lines = infilling_lines if study is Study.fim else 0
    measured_bytes = held_out_bytes or (8_000 if study is Study.quant else 100_000)
    documents = HeldOut.load(
        EvaluationSection(held_out=str(parquet), max_bytes_per_domain=measured_bytes, infilling=lines)
    )
    tokens = data / "tokens"
    if study is Study.quant:
        from mify.training import ablate_quant

        names = [name.strip() for name in methods.split(",") if name.strip()]
        rows = ablate_quant.run_quant_study(
            model or [data / "runs" / "demo"], documents, data / "corpus" / "documents.parquet", folder,
            methods=names, problems=problems, samples=samples, say=say,
        )  # fmt: skip
        _show_quant(rows, folder, console, measured_bytes)
        return
    if study is Study.scale:
        found = scaling.run_ladder(
            tokens, documents, folder, rungs=scaling.parse_rungs(rungs), budgets=scaling.parse_budgets(budgets),
            recipe=recipe or "ablate-mix", overrides=context.args, say=say,
        )  # fmt: skip
        _show_curve(found, folder, console)
        return
    make = ablation.mix_study if study is Study.mix else ablation.fim_study
    plan = make(tokens, recipe) if recipe else make(tokens)
    result = ablation.run_study(plan, documents, folder, seeds=range(1, seeds + 1), overrides=context.args, say=say)
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
    if util.find_spec("matplotlib") is not None and not console.quiet:
        plot(result, folder / "ablation.png")
        console.print(f"{folder / 'ablation.png'}", markup=False)
    console.print(f"{folder / 'ablation.json'}", markup=False)


def _show_quant(rows: list[Row], folder: Path, console: Console, held_out_bytes: int) -> None:
    from rich.table import Table

    from mify.training.ablate_quant import SPEED_ON, conclusion

    table = Table("model", "method", "MB", "decode", "held-out bits a byte", "pass@1", "solutions' bits a byte")
    for row in rows:
        plain = row.method == "bf16"
        passes, solutions = row.passes, f"{row.solution_bits:.4f}"
        if not plain:
            solutions += f" {row.solution_change:+.2%}\n[{row.solution_low:+.2%}, {row.solution_high:+.2%}]"
        held_out = f"{row.bits_per_byte:.4f}"
        if not plain:
            held_out += f" {row.change:+.2%}\n[{row.low:+.2%}, {row.high:+.2%}]"
        solved = f"{row.pass_at_1:.1%}"
        if passes is not None:
            solved += f" {100 * passes.mean:+.1f}\n[{100 * passes.low:+.1f}, {100 * passes.high:+.1f}]"
        table.add_row(
            row.model, row.method, f"{row.megabytes:.1f}", f"{row.decode_speedup:.2f}x", held_out,
            *((solved, solutions) if row.problems else ("not run", "not run")),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"decode: batch 1 on an {SPEED_ON}, by bytes, nothing was run. Held out: at most {held_out_bytes:,} bytes per "
        "domain, documents that fit; --held-out-bytes, --problems and --samples measure more. In brackets 95%, paired.",
        style="dim",
    )
    console.print(conclusion(rows), markup=False)
    console.print(f"{folder / 'quantization.json'}", markup=False)


def _show_sft_scale(rows: list[Step], folder: Path, console: Console) -> None:
    from importlib import util

    from rich.table import Table

    from mify.training.ablate_sft import conclusion, plot

    table = Table("conversations", "steps", "nats a token", "against the size before", "95%", "verdict")
    for row in rows:
        gained = row.gained
        told = ("", "", "") if gained is None else (
            f"{gained.mean:+.4f}", f"{gained.low:+.4f} … {gained.high:+.4f}", gained.verdict,
        )  # fmt: skip
        table.add_row(f"{row.size:,}", f"{row.steps:,}", f"{row.loss:.4f}", *told)
    console.print(table)
    console.print(conclusion(rows), markup=False)
    if util.find_spec("matplotlib") is not None:
        plot(rows, folder / "sft-scale.png")
        console.print(f"{folder / 'sft-scale.png'}", markup=False)
    console.print(f"{folder / 'sft-scale.json'}", markup=False)


def _show_grpo(rows: list[GrpoRow], folder: Path, console: Console) -> None:
    from importlib import util

    from rich.table import Table

    from mify.training import ablate_grpo

    table = Table("run", "answers", "held-out specs solved", "against warm", "95%", "CPU seconds")
    for row in rows:
        table.add_row(
            row.arm, row.how, f"{row.solved:.1%}", f"{row.difference:+.1%}", f"{row.low:+.1%} … {row.high:+.1%}",
            f"{row.cpu_seconds:.0f}",
        )  # fmt: skip
    console.print(table)
    seeds = len(rows[0].by_seed)
    console.print(ablate_grpo.conclusion(rows, seeds), markup=False)
    if util.find_spec("matplotlib") is not None:
        ablate_grpo.plot(rows, folder / "grpo.png")
        console.print(f"{folder / 'grpo.png'}", markup=False)
    console.print(f"{folder / 'grpo.json'}", markup=False)


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
    if util.find_spec("matplotlib") is not None and not console.quiet:
        scaling.plot(found, folder / "scale.png")
        console.print(f"{folder / 'scale.png'}", markup=False)
    console.print(f"{folder / 'scale.json'}", markup=False)
