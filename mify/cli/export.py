"""`mify export MODEL`: files that engines load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mify.errors import MifyError

TARGETS = ("hf", "gguf", "fp8", "int8", "int4")


def export(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder, a GGUF file, a run folder or a checkpoint.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf: a Hugging Face folder. fp8, int8, int4: the same, quantized, for vLLM and SGLang. "
            "gguf: a file for llama.cpp and Ollama.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder (gguf: file) to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="hf: f32, bf16, f16 (default: as it is). gguf: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, … "
            "(default: f16). fp8, int8, int4: of what is not quantized (default: bf16).",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="gguf: load it with llama.cpp and say if it runs.")] = False,
) -> None:
    """Write a model as other engines load it.

    Tensors are streamed: memory does not grow with the model. What is written appears whole or not at all.
    """
    if to not in TARGETS:
        raise MifyError(f"--to {to} is not known", f"give {', '.join(TARGETS)}")
    if to != "gguf" and check:
        raise MifyError(f"--check does not go with --to {to}", "leave it out; llama.cpp reads only gguf")
    from mify.loading import open_weights

    weights = open_weights(model)
    if to == "gguf":
        from mify.export.gguf import export_gguf

        for note in export_gguf(weights, out, dtype or "f16"):
            typer.echo(f"note: {note}")
        size = out.stat().st_size
        if check:
            from mify.export.llama_cpp import LlamaCpp

            with LlamaCpp(out) as server:
                server.greedy([0], 1)
            typer.echo("llama.cpp loads and runs it")
    else:
        from mify.export.hf import DTYPES, export_hf
        from mify.export.quantized import export_quantized

        if dtype is not None and dtype not in DTYPES:
            raise MifyError(f"--dtype {dtype} is no dtype of a Hugging Face folder", f"give {', '.join(DTYPES)}")
        if to == "hf":
            export_hf(weights, out, dtype=DTYPES[dtype] if dtype else None)
        else:
            export_quantized(weights, out, to, dtype=DTYPES[dtype or "bf16"])
        size = sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"{out}: {weights.config.num_parameters() / 1e6:.1f} M parameters, {size / 1e6:.1f} MB")
