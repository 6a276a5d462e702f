"""`mify import SRC`: a model from elsewhere, as a folder that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mify.cli.paths import not_the_source
from mify.errors import MifyError


def import_(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder or a GGUF file of a Llama-shaped model.")],
    out: Annotated[Path, typer.Option("--out", help="The Hugging Face folder to write.")],
    dtype: Annotated[str | None, typer.Option("--dtype", help="f32, bf16 or f16 (default: as it is).")] = None,
) -> None:
    """Bring in a Llama-shaped model: from a Hugging Face folder or a GGUF file (dequantized)."""
    from mify.export.hf import DTYPES, export_hf
    from mify.loading import open_weights

    if dtype is not None and dtype not in DTYPES:
        raise MifyError(f"--dtype {dtype} is not known", f"give {', '.join(DTYPES)}")
    not_the_source(out, source)
    weights = open_weights(source)
    export_hf(weights, out, dtype=DTYPES[dtype] if dtype else None)
    config = weights.config
    typer.echo(
        f"{out}: {config.name}, {config.num_parameters() / 1e6:.1f} M parameters, {config.num_layers} layers, "
        f"heads {config.num_query_heads}/{config.num_kv_heads}, context {config.context}"
    )
