"""`mify quantize MODEL`: FP8, INT8 and AWQ weights, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mify.cli.paths import not_the_source
from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.console import Console

METHODS = ("fp8", "fp8-weight", "fp8-block", "int8", "awq8", "awq4")


def quantize(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder, a GGUF file, a run folder or a checkpoint.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="fp8: E4M3, a scale a row, activations too. fp8-weight: weights alone. fp8-block: a scale for "
            "128x128. int8: weights alone. "
            "awq8, awq4: groups of 128, scaled by activations.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; engines load it.")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Text of the kind the model is for: a file, a folder, the curation's documents.parquet, or token "
            "shards. awq8 and awq4 need it; the others round with feedback by it, which costs less accuracy.",
        ),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=1, help="How much of it is used.")] = 16_384,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", metavar="FILE", help="Documents (.parquet) for bits per byte before and after."),
    ] = None,
    held_out_bytes: Annotated[int, typer.Option(min=1, help="How much of them is measured on.")] = 20_000,
    group_size: Annotated[
        int | None, typer.Option(min=8, help="Columns that share a scale (awq8, awq4); 128, 64 or 32 by default.")
    ] = None,
) -> None:
    """Quantize a model's linear weights, streaming, and say what it costs.

    mify quantize runs/demo --to awq4 --calibration corpus/documents.parquet --held-out corpus/held_out.parquet --out q
    """
    if to not in METHODS:
        raise MifyError(f"--to {to} is not known", f"give {', '.join(METHODS)}")
    from rich.console import Console

    from mify.export.calibration import calibration_sequences
    from mify.loading import load, open_weights
    from mify.quantization.quantize import add_to_report, bits_per_byte_as_run, sample_texts
    from mify.quantization.quantize import quantize as run
    from mify.quantization.scheme import Scheme

    console = Console(highlight=False)
    not_the_source(out, model)
    weights = open_weights(model)
    sequences = None
    if calibration is not None:
        if weights.tokenizer is None:
            raise MifyError(
                f"{weights.source} has no tokenizer to read the calibration text with", "add tokenizer.json"
            )
        context = weights.config.context
        sequences = calibration_sequences(
            calibration, weights.tokenizer, context=context, tokens=calibration_tokens
        )  # fmt: skip
    texts = None
    if held_out is not None:
        from mify.curation.documents import read_documents

        texts = sample_texts(list(read_documents(held_out)), held_out_bytes)
    with console.status("") as status:
        report = run(
            weights, out, to, sequences=sequences, group_size=group_size,
            progress=lambda done, total: status.update(f"{done} of {total} layers"),
        )  # fmt: skip
        if texts is not None:
            status.update("held-out bits per byte")
            scheme = Scheme(report["scheme"], report["group_size"] or 0)
            quantized = load(out)
            measured: dict[str, Any] = {
                "bytes": sum(len(text.encode("utf-8")) for text in texts),
                "before": bits_per_byte_as_run(load(model), texts),
                "after": bits_per_byte_as_run(quantized, texts),
            }
            if scheme.layout.activations:
                measured["after_as_engines_run_it"] = bits_per_byte_as_run(quantized, texts, scheme)
            report |= add_to_report(out, held_out_bits_per_byte=measured)
    _show(console, report, out)


def _show(console: Console, report: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    kinds: dict[str, list[dict[str, Any]]] = {}
    for layer in report["layers"]:
        kinds.setdefault(layer["name"].removesuffix(".weight").rpartition(".")[2], []).append(layer)
    table = Table("linear layers", "weight error", "worst", "output error", "worst", header_style="bold")
    for kind, layers in kinds.items():
        cells = []
        for key in ("weight_error", "output_error"):
            errors = [layer[key] for layer in layers if layer[key] is not None]
            cells += [f"{sum(errors) / len(errors):.2%}", f"{max(errors):.2%}"] if errors else ["–", "–"]
        table.add_row(kind, *cells)
    console.print(table)
    ratio = report["bytes_in_bf16"] / report["bytes"]
    console.print(f"{report['bytes'] / 1e6:.1f} MB, {ratio:.2f} times smaller than bf16, in {report['seconds']:.1f} s")
    held_out = report.get("held_out_bits_per_byte")
    if held_out:
        before = held_out["before"]
        for key, label in (("after", "weights"), ("after_as_engines_run_it", "weights and activations")):
            if key in held_out:
                change = held_out[key] / before - 1
                console.print(
                    f"held-out bits per byte, {label} quantized: {before:.4f} → {held_out[key]:.4f} ({change:+.2%}) "
                    f"on {held_out['bytes']:,} bytes"
                )
    console.print(f"{out} (the error of every layer: {out / 'quantization.json'})", style="dim")
