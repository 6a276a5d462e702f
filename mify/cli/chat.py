"""`mify chat MODEL`: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mify.errors import MifyError


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a Hugging Face folder, a run folder, a checkpoint, or an endpoint's address.",
            show_default=False,
        ),
    ],
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told before the conversation.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; above, sample.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    engine: Annotated[str, typer.Option(help="llama.cpp or mify; auto: llama.cpp where it is installed.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="llama.cpp: CPU threads; the free cores by default.", show_default=False)
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to ask an endpoint for.", show_default=False)
    ] = None,
    api_key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds an endpoint's key.")
    ] = "OPENAI_API_KEY",
) -> None:
    """Chat with a model. An empty line or /exit ends it, /reset forgets what was said, Ctrl-C breaks an answer off.

    mify chat mify-demo/export/model.gguf
    """
    from mify.serve.conversation import Conversation, open_speaker

    with open_speaker(
        model, engine=engine, threads=threads, endpoint_model=endpoint_model, api_key_variable=api_key_variable
    ) as speaker:
        talk = Conversation(speaker, system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        terminal = sys.stdin.isatty()
        if terminal:
            typer.echo(f"{Path(model).name}, by {speaker.name}. /reset forgets, /exit ends.")
        while True:
            try:
                line = input("> " if terminal else "").strip()
            except EOFError:
                return
            if line in ("", "/exit", "/quit"):
                return
            if line == "/reset":
                talk.reset()
                continue
            if line.startswith("/"):
                typer.echo("/reset forgets what was said, /exit ends", err=True)
                continue
            try:
                for piece in talk.say(line):
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                if not terminal:
                    raise
            except MifyError as error:
                typer.echo(f"mify: {error}", err=True)
                if not terminal:
                    raise typer.Exit(2) from None
            typer.echo()
