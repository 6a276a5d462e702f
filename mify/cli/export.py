"""`mify export MODEL`: files that engines load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mify.errors import MifyError

TARGETS = ("hf", "gguf")


def export(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder, a GGUF file, a run folder or a checkpoint.")],
    to: Annotated[str, typer.Option("--to", help="hf (a Hugging Face folder) or gguf (llama.cpp, Ollama).")],
    out: Annotated[Path, typer.Option("--out", help="The folder (hf) or file (gguf) to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="hf: f32, bf16, f16 (default: as it is). gguf: f32, f16, bf16, q8_0, q6_k, q4_k_m … (f16)."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="gguf: load it with llama.cpp and say if it runs.")] = False,
) -> None:
    """Write a model as other engines load it: a Hugging Face folder, or GGUF.

    Tensors are streamed: memory does not grow with the model. What is written appears whole or not at all.
    """
    if to not in TARGETS:
        raise MifyError(f"--to {to} is not known", f"give {' or '.join(TARGETS)}")
    from mify.loading import open_weights

    weights = open_weights(model)
    if to == "hf":
        from mify.export.hf import DTYPES, export_hf

        if dtype is not None and dtype not in DTYPES:
            raise MifyError(f"--dtype {dtype} is no dtype of a Hugging Face folder", f"give {', '.join(DTYPES)}")
        export_hf(weights, out, dtype=DTYPES[dtype] if dtype else None)
        size = sum(file.stat().st_size for file in out.iterdir())
    else:
        from mify.export.gguf import export_gguf

        for note in export_gguf(weights, out, dtype or "f16"):
            typer.echo(f"note: {note}")
        size = out.stat().st_size
        if check:
            from mify.export.llama_cpp import LlamaCpp

            with LlamaCpp(out) as server:
                server.greedy([0], 1)
            typer.echo("llama.cpp loads and runs it")
    typer.echo(f"{out}: {weights.config.num_parameters() / 1e6:.1f} M parameters, {size / 1e6:.1f} MB")
