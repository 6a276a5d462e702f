"""`mify generate MODEL "prompt"`: continue a text, or fill the gap between two files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mify.errors import MifyError


def generate(
    model: Annotated[
        Path,
        typer.Argument(help="A run folder, a checkpoint, a Hugging Face folder or a GGUF file.", show_default=False),
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; '-' reads it from standard input.", show_default=False)
    ] = None,
    fim: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--fim", metavar="PREFIX SUFFIX", help="Infill: print what belongs between these two files."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="End after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; above, sample.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the fewest tokens that reach this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0 is all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Sample among tokens this share as likely as the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
) -> None:
    """Generate text with a model; it appears as it is made. Ctrl-C ends it with what is there.

    mify generate runs/demo "def fibonacci(n):"          continue a text
    mify generate runs/demo --fim prefix.py suffix.py    fill the gap between two files
    """
    if (prompt is None) == (fim is None):
        raise MifyError("give either a prompt or --fim PREFIX SUFFIX", 'for example: mify generate MODEL "def add("')
    import torch

    from mify.loading import load

    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise MifyError(f"device {device!r} is unknown", "use auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MifyError("device cuda is not there", "use --device cpu; `mify doctor` says what this machine has")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    loaded = load(model, device=chosen, dtype=torch.bfloat16 if chosen.startswith("cuda") else torch.float32)
    from mify.engine import SamplingParams
    from mify.generate import infill_prompt, request_seed, stream_text

    given: str | list[int]
    if fim is not None:
        before, after = (_read(path) for path in fim)
        given = infill_prompt(loaded, before, after, max_new_tokens)
    else:
        given = sys.stdin.read() if prompt == "-" else prompt or ""
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=request_seed(seed, 0),
        stop=stop or (),
    )
    try:
        for piece in stream_text(loaded, given, params):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:  # what is there is there
        typer.echo()
        raise typer.Exit(130) from None
    if fim is None:
        typer.echo()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise MifyError(f"{path} does not exist", "give a text file; an empty one is fine") from None
    except (IsADirectoryError, PermissionError) as error:
        raise MifyError(f"{path} cannot be read ({error.strerror})", "give a readable text file") from None
    except UnicodeDecodeError as error:
        raise MifyError(f"{path} is not UTF-8 text (byte {error.start})", "convert it to UTF-8") from None
