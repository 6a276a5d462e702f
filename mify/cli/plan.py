"""`mify plan MODEL --tokens 4.2T --gpus 64xH100`: what a run will take, with the arithmetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mify.plan import Plan
    from mify.training.scaling import Forecast

_TITLES = {
    "parameters": "Parameters",
    "compute": "Training FLOPs (visible pairs only)",
    "time": "Time",
    "data": "Data and compute-optimality",
}


def plan(
    model: Annotated[str, typer.Argument(help="mify-2.5b, mify-350m, mify-125m or mify-tiny.")] = "mify-2.5b",
    tokens: Annotated[str, typer.Option(help="Training tokens: 4.2T, 200B, 50M.")] = "4.2T",
    gpus: Annotated[str, typer.Option(help="How many of which: 64xH100, 8xH200, A100.")] = "64xH100",
    mfu: Annotated[float, typer.Option(help="Model FLOPs over the data sheet's peak, a fraction.")] = 0.40,
    context: Annotated[int, typer.Option(help="Tokens a row; 0 for the model's own.", min=0)] = 0,
    document: Annotated[int, typer.Option(help="Mean tokens a packed document; 0 for the context.", min=0)] = 0,
    batch: Annotated[str, typer.Option("--global-batch", help="Tokens an optimizer step.")] = "2097152",
    rows: Annotated[int, typer.Option(help="Rows on a GPU at a time.", min=1)] = 1,
    curve: Annotated[
        Path | None, typer.Option(help="A scale.json of `mify ablate scale`: what its fitted curve says of this run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Predict a training run: parameters, FLOPs, memory a GPU, days. The arithmetic is shown; nothing is measured."""
    from mify.config import model_config
    from mify.plan import Run, make_plan, parse_count, parse_gpus

    num_gpus, spec = parse_gpus(gpus)
    result = make_plan(
        Run(
            model=model_config(model),
            tokens=parse_count(tokens),
            gpu=spec,
            num_gpus=num_gpus,
            mfu=mfu,
            document=document,
            global_batch_tokens=parse_count(batch),
            rows=rows,
            context=context,
        )
    )
    forecast = None
    if curve is not None:
        from mify.training.scaling import forecast as forecast_of
        from mify.training.scaling import read_fit

        shape = result.run.model
        size = shape.num_non_embedding_parameters() + shape.vocab_size * shape.hidden_size  # as the ladder counts
        forecast = forecast_of(read_fit(curve), size, result.run.tokens)
    if as_json:
        more = {} if forecast is None else {"forecast": dataclasses.asdict(forecast)}
        typer.echo(json.dumps(result.as_dict() | more, indent=2, sort_keys=True))
        return
    from rich.console import Console

    console = Console()
    print_plan(console, result)
    if forecast is not None:
        print_forecast(console, forecast)


def print_plan(console: Console, result: Plan) -> None:
    """The plan as tables: label, arithmetic, result."""
    from rich.table import Table

    from mify.plan_lines import duration

    run, figures = result.run, result.figures
    console.print(
        f"[bold]{run.model.name}[/bold]: {figures['parameters'] / 1e9:.3f} B parameters on {run.num_gpus} × "
        f"{run.gpu.name}, [bold]{duration(figures['days'])}[/bold] at {run.mfu:.0%} MFU "
        f"({figures['tokens_per_second_per_gpu']:,.0f} tokens/s a GPU)",
        highlight=False,
    )
    console.print("predicted from the cost model and data sheets; nothing here was measured\n", style="dim")
    for part, lines in result.lines.items():
        table = Table(
            title=_TITLES[part], title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
        )
        table.add_column(style="cyan", no_wrap=True, min_width=24)
        table.add_column(style="dim")
        table.add_column(justify="left")
        for line in lines:
            table.add_row(line.label, line.arithmetic, f"= {line.result}")
        console.print(table, highlight=False)
        console.print()

    _print_memory(console, result)
    console.print(f"\n[bold]→ {result.advice}[/bold]", highlight=False)
    other = ", ".join(f"{duration(figures['days'] * run.mfu / at)} at {at:.0%}" for at in (0.3, 0.4, 0.5))
    console.print(f"MFU decides: {other} (published runs of this size: 40 to 47%)", style="dim", highlight=False)


def print_forecast(console: Console, found: Forecast) -> None:
    """What the fitted curve says of the run, with its error bars."""
    low, high = found.interval
    console.print("\n[bold]By the fitted scaling curve[/bold] (95% intervals)", highlight=False)
    console.print(
        f"this run: {found.parameters:,} parameters (without the embedding), {found.tokens:,} tokens: "
        f"{found.bits_per_byte:.4f} held-out bits per byte [{low:.4f}, {high:.4f}]",
        highlight=False,
        markup=False,
    )
    if found.optimum is None:
        console.print("the same compute, best: this ladder does not tell; run a wider one")
    else:
        parameters, tokens = found.optimum
        low, high = found.optimum_interval
        console.print(
            f"the same compute, best: {parameters:,.0f} parameters [{low:,.0f}, {high:,.0f}] on {tokens:,.0f} tokens "
            f"({tokens / parameters:,.1f} a parameter): {found.optimum_bits_per_byte:.4f}",
            highlight=False,
            markup=False,
        )
    if found.extrapolation > 1:
        console.print(
            f"{found.extrapolation:,.3g} times the compute of the ladder's largest run: extrapolated, and the "
            "intervals know only the noise of the ladder, not whether the law holds that far",
            style="dim",
            highlight=False,
        )


def _print_memory(console: Console, result: Plan) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mify.plan import BETWEEN_NODES, LINK_EFFICIENCY, RESERVED_BYTES

    gpu = result.run.gpu
    title = (
        f"Memory of one {gpu.name} ({gpu.memory_bytes / 1e9:.1f} GB), in GB; without / with activation checkpointing"
    )
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for name in ("state", "gathered", "activations", "total", "traffic"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fits")
    for sharding in result.shardings:
        style = {"yes": "green", "with checkpointing": "yellow", "no": "red"}[sharding.fits]
        table.add_row(
            f"[bold]{sharding.name}{' ←' if sharding.name == result.chosen else ''}[/bold]",
            f"{sharding.state_bytes / 1e9:.1f}",
            f"{sharding.gathered_bytes / 1e9:.1f}",
            f"{sharding.activation_bytes / 1e9:.1f} / {sharding.checkpointed_bytes / 1e9:.1f}",
            f"{sharding.total_bytes / 1e9:.1f} / {sharding.total_checkpointed_bytes / 1e9:.1f}",
            f"{sharding.communication_bytes / 1e9:.1f}; {sharding.communication_seconds:.2f} s",
            f"[{style}]{sharding.fits}[/{style}]",
        )
    console.print(table, highlight=False)
    console.print(
        "; ".join(f"{sharding.name}: {sharding.what}" for sharding in result.shardings) + ".\n"
        "state: 16 bytes a parameter (fp32 weight, gradient, two moments). gathered: bf16 weights whole at one moment. "
        f"total: {RESERVED_BYTES / 1e9:.1f} GB assumed for CUDA, NCCL and the allocator. "
        f"traffic: a step's, at {LINK_EFFICIENCY:.0%} of {gpu.nvlink_bandwidth / 1e9:.0f} GB/s in a node and of "
        f"{BETWEEN_NODES / 1e9:.0f} GB/s a GPU between nodes, assumed.",
        style="dim",
        highlight=False,
    )
