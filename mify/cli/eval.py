"""`mify eval MODEL`: benchmarks on a model, generated programs run in a sandbox, every answer kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mify.errors import MifyError

if TYPE_CHECKING:
    from rich.console import Console

    from mify.eval.completers import Completer


def _list(value: bool) -> None:
    if not value:
        return
    from mify.eval.benchmarks import BENCHMARKS, FROM_DOCUMENTS, GROUPS

    for benchmark in BENCHMARKS.values():
        typer.echo(f"{benchmark.name:<32}{benchmark.about}  ({benchmark.license}; {benchmark.where})")
    for name, about in FROM_DOCUMENTS.items():
        typer.echo(f"{name:<32}{about}  (--held-out)")
    for name, members in GROUPS.items():
        typer.echo(f"{name:<32}{', '.join(members)}")
    raise typer.Exit()


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a Hugging Face folder, a GGUF file, or the address of an endpoint.",
            show_default=False,
        ),
    ],
    tasks: Annotated[str, typer.Option(help="Names with commas; --list names them all.")] = "humaneval",
    list_tasks: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the tasks and end.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where records and results go; eval/MODEL by default.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Held-out documents (.parquet), for infilling and bpb.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Training documents (.parquet): for the baselines of bpb, and to check scores for contamination.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", envvar="MIFY_EVAL_DATA", help="Benchmark files that no package carries."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="mify, transformers, llama.cpp; auto: endpoint for an address, else mify."),
    ] = "auto",
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to ask an endpoint for.", show_default=False)
    ] = None,
    api_key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds an endpoint's key.")
    ] = "OPENAI_API_KEY",
    endpoint_infills: Annotated[
        bool, typer.Option("--endpoint-infills", help="The endpoint honours `suffix`; some ignore it silently.")
    ] = False,
    fim_order: Annotated[
        str, typer.Option(metavar="ORDER", help="Of infilling prompts: psm, or spm (the suffix first).")
    ] = "psm",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of llama.cpp; the free cores by default.", show_default=False)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="URL", help="An endpoint that judges refusals; without one, their words do.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model to ask it for.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's chat format.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem.")] = 1,
    k: Annotated[str, typer.Option("--k", help="The k of pass@k, with commas.")] = "1",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; above, sample.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the fewest tokens that reach this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling and confidence intervals.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest completion; each task has its own.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many problems of a task.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Programs at a time; one a core by default.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Run every solution in another process than its tests.")
    ] = False,
    unconfined: Annotated[
        bool, typer.Option("--unconfined", help="Where nothing can confine programs, run them all the same.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
) -> None:
    """Evaluate a model.

    mify eval runs/demo --tasks humaneval,infilling,bpb --held-out held_out.parquet --training documents.parquet

    Run it again and it continues where it stopped. Every prompt, completion and verdict is in FOLDER as JSON lines.
    """
    import shutil

    from rich.console import Console

    from mify.eval.benchmarks import BITS_PER_BYTE, FROM_DOCUMENTS, tasks_by_name
    from mify.eval.evaluate import evaluate as run
    from mify.eval.open_model import open_model
    from mify.eval.runner import RunOptions
    from mify.eval.sandbox import sandbox_kind
    from mify.files import check_ours

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise MifyError("no task is named", "use --tasks humaneval,infilling,bpb; --list names them all")
    needs_documents = FROM_DOCUMENTS.keys() & set(names)
    if needs_documents and held_out is None:
        raise MifyError(
            f"{', '.join(sorted(needs_documents))} needs held-out documents", "give --held-out FILE.parquet"
        )
    options = RunOptions(
        samples=samples, k=_numbers(k), temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens,
        limit=limit, workers=workers, allow_unconfined=unconfined, form="apart" if strict else "auto", chat=chat,
        fim_order=fim_order,
    )  # fmt: skip
    console = Console()
    documents: list[Any] = _documents(held_out) if needs_documents else []
    chosen = tasks_by_name(names, data, lambda: documents, judge=_judge(judge, judge_model, api_key_variable))
    if any(task.program is not None for task in chosen):
        kind = sandbox_kind()
        if kind.confined:
            console.print(f"programs run in {kind.name} ({kind.reason})", style="dim", highlight=False)
    opened = open_model(
        model, engine=engine, device=device, endpoint_model=endpoint_model, api_key_variable=api_key_variable,
        endpoint_infills=endpoint_infills, threads=threads,
    )  # fmt: skip
    with opened as (completer, loaded), console.status("") as status:
        folder = out or Path("eval") / completer.name.replace("/", "_")
        if fresh and folder.exists():
            check_ours(folder, "*.completions.jsonl", "evaluation.json")
            shutil.rmtree(folder)
        results = run(
            completer,
            chosen,
            folder,
            options=options,
            model=loaded,
            held_out=documents,
            training=_documents(training),
            with_bits_per_byte=BITS_PER_BYTE in names,
            progress=lambda label, done, total: status.update(f"{label} {done}/{total}"),
        )
    print_results(console, results)
    console.print(f"report: {folder / 'report.html'}", style="dim", highlight=False)
    console.print(f"records and results: {folder}", style="dim", highlight=False)
    if (problem := no_answers(folder, results)) is not None:
        raise MifyError(f"{completer.name} answered nothing: {problem}", "mend that and run again: it asks anew")


def no_answers(folder: Path, results: list[dict[str, Any]]) -> str | None:
    """Why not a single prompt was answered; None where one was."""
    scored = [result for result in results if result["task"] != "bits_per_byte"]
    if not scored or any(result["statuses"].keys() != {"no answer"} for result in scored):
        return None
    with (folder / f"{scored[0]['task']}.verdicts.jsonl").open(encoding="utf-8") as lines:
        return next(
            (str(record["detail"]) for record in map(json.loads, lines) if record.get("detail")), "no reason told"
        )


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """A table of scores, and one of bits per byte."""
    from rich.table import Table

    scored = [result for result in results if result["task"] != "bits_per_byte"]
    if scored:
        table = Table("task", "metric", "score", "95% interval", "passed", "how they ended", header_style="bold")
        for result in scored:
            for metric, score in result["scores"].items():
                ended = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
                table.add_row(
                    result["task"],
                    "exact match" if result["judged"]["how"] == "exact match" and metric == "pass@1" else metric,
                    f"{100 * score['value']:.1f}%",
                    f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
                    f"{result['passed']}/{result['items']}",
                    ended,
                )
        console.print(table)
    for result in scored:
        if "contamination" in result:
            found = result["contamination"]
            line = (
                f"{result['task']}: {found['contaminated']} of {found['items']} items stand in the training documents"
            )
            without = found["score_without"]
            if found["contaminated"] and without is not None:
                line += f"; without them the score is {100 * without:.1f}%"
            console.print(line, style="red" if found["contaminated"] else "dim", highlight=False)
    for result in results:
        if result["task"] == "bits_per_byte":
            names = [name for name in ("model", "ngram", "xz_trained", "xz") if name in result["all"]]
            table = Table("bits per byte", "bytes", *names, header_style="bold")
            for domain, row in [*result["domains"].items(), ("all", result["all"])]:
                table.add_row(domain, f"{row['bytes']:,}", *(f"{row[name]:.3f}" for name in names))
            console.print(table)
            for name in names[1:]:
                console.print(f"{name}: {result['baselines'][name]}", style="dim", highlight=False)


def _judge(url: str | None, model: str | None, api_key_variable: str) -> Completer | None:
    if url is None:
        return None
    import os

    from mify.eval.endpoint import EndpointCompleter

    if model is None:
        raise MifyError("an endpoint serves models by name", "give --judge-model NAME")
    return EndpointCompleter(url, model, api_key=os.environ.get(api_key_variable))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise MifyError(f"--k {text!r} is no list of positive whole numbers", "write for example --k 1,10")
    return values


def _documents(path: Path | None) -> list[Any]:
    from mify.curation.documents import read_documents

    return [] if path is None else list(read_documents(path))
