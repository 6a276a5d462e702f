"""`mify serve MODEL`: an existing engine on a model, with the infill calls that editors make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mify.errors import MifyError


def serve(
    model: Annotated[
        Path,
        typer.Argument(help="A GGUF file, a Hugging Face folder, a run folder or a checkpoint.", show_default=False),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    engine: Annotated[
        str, typer.Option(help="llama.cpp, vllm, sglang; auto: llama.cpp on a CPU, vLLM or SGLang on a GPU.")
    ] = "auto",
    context: Annotated[
        int | None, typer.Option(min=64, help="Tokens of context; the model's by default.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="llama.cpp: CPU threads; the free cores by default.", show_default=False)
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="llama.cpp: requests served at the same time.")] = 2,
    dtype: Annotated[str, typer.Option(help="llama.cpp: of the GGUF that is made of another kind of model.")] = "q8_0",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model.", show_default=False)
    ] = None,
) -> None:
    """Serve a model: chat, completions, tools and infilling, for OpenAI clients and editors.

    mify serve mify-demo/export/model.gguf      then point an editor at http://127.0.0.1:8080

    Ends with Ctrl-C.
    """
    import torch

    from mify.eval.open_model import free_cpus
    from mify.loading import open_weights
    from mify.serve.adapter import Adapter, Infill
    from mify.serve.engines import EngineProcess, choose_engine, installed_engines, prepare

    if not model.exists():
        raise MifyError(f"{model} does not exist", "give a GGUF file, a Hugging Face folder, a run or a checkpoint")
    chosen = choose_engine(
        engine, is_gguf=model.is_file(), has_gpu=torch.cuda.is_available(), installed=installed_engines()
    )
    served = prepare(model, chosen, dtype=dtype)
    weights = open_weights(served.path)
    if weights.tokenizer is None:
        raise MifyError(f"{served.path} has no tokenizer", "add tokenizer.json to the folder")
    known = name or model.resolve().name
    infill = Infill(weights.tokenizer, min(context or weights.config.context, weights.config.context))
    if chosen == "llama.cpp":
        from mify.export.llama_cpp import LlamaCpp

        started = LlamaCpp(
            served.path, context=context, threads=threads or free_cpus(), exact=False, parallel=parallel, name=known
        )
    else:
        typer.echo(f"starting {chosen} on {served.path} …")
        started = EngineProcess(chosen, served.path, known, context=context)  # type: ignore[assignment]
    with started as running, Adapter(running.url, infill, known, host=host, port=port) as adapter:
        typer.echo(f"{known} on {adapter.url}, by {chosen}")
        typer.echo(f"  OpenAI clients   {adapter.url}/v1")
        if infill.marks is None:
            typer.echo("  infilling        refused: the vocabulary has no FIM tokens")
        else:
            typer.echo(f"  llama.vim        {adapter.url}/infill")
            typer.echo(f"  Codestral's FIM  {adapter.url}/v1/fim/completions")
        wait(running)


def wait(running: object) -> None:
    """Until Ctrl-C, or until an engine in a process of its own has ended."""
    import time

    while getattr(running, "running", lambda: True)():
        time.sleep(0.5)
    raise MifyError("the engine has ended by itself", "start it again; its own log says why")
