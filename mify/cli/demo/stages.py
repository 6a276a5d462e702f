"""What the demo does, a function a stage: each reads what those before it made and returns what the report shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.cli.demo.pipeline import Report, Stage
from mify.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from mify.curation.documents import Document
    from mify.training.config import TrainConfig

DOMAINS = ("code", "text", "math")
TARGET = {"code": 78, "text": 12, "math": 10}  # arXiv 2512.23747: code:text:math in continual pretraining
GREEDY_TOKENS = 40  # of the parity check of an export
HUMANEVAL_NEW_TOKENS = 96  # HumanEval's shorter solutions fit; a model of this size writes no longer ones


@dataclass(frozen=True)
class DemoConfig:
    """What decides the demo's artefacts. The defaults take under ten minutes on two cores."""

    seed: int = 0
    max_bytes: int = 48_000_000  # of documents that are collected
    vocab_size: int = 4096
    steps: int | None = None  # None: the recipe's
    humaneval_problems: int | None = None  # None: all 164
    infilling_lines: int = 100


def demo_stages(config: DemoConfig) -> list[Stage]:
    """The stages in order, each with the settings that decide its outputs."""
    from mify.curation.config import CurationConfig
    from mify.curation.pipeline import REPORT_VERSION
    from mify.training.config import load_recipe
    from mify.typed_tree import to_plain

    recipe = load_recipe("demo")
    train_settings = {"recipe": recipe.hash, "seed": config.seed, "steps": config.steps}
    evaluation = {
        "humaneval": config.humaneval_problems,
        "lines": config.infilling_lines,
        "tokens": HUMANEVAL_NEW_TOKENS,
    }
    return [
        Stage(
            "curate",
            "Curate",
            {
                "seed": config.seed,
                "bytes": config.max_bytes,
                "rules": to_plain(CurationConfig()),
                "report": REPORT_VERSION,
            },
            (),
            ("corpus",),
            partial(curate, config),
            show_funnel,
        ),
        Stage(
            "tokenizer",
            "Tokenizer",
            {"vocab": config.vocab_size},
            ("curate",),
            ("tokenizer",),
            partial(tokenizer, config),
        ),
        Stage("tokenize", "Tokenize", {}, ("curate", "tokenizer"), ("tokens",), tokenize),
        Stage("train", "Train", train_settings, ("curate", "tokenize"), ("runs",), partial(train, config)),
        Stage("evaluate", "Evaluate", evaluation, ("curate", "train"), ("evaluation",), partial(evaluate, config)),
        Stage("export", "Export", {"greedy": GREEDY_TOKENS}, ("train",), ("export",), export),
    ]


def curate(config: DemoConfig, folder: Path, report: Report) -> dict[str, Any]:
    """The Python installation → corpus/{documents,rejected,held_out}.parquet, report.json."""
    from mify.curation.config import CurationConfig
    from mify.curation.pipeline import curate as run
    from mify.curation.python_installation import CollectionConfig, collect

    workers = os.cpu_count() or 1
    collection = collect(
        config=CollectionConfig(max_bytes=config.max_bytes, seed=config.seed), num_workers=workers, progress=report
    )
    result = run(
        collection.inputs(),
        folder / "corpus",
        CurationConfig(),
        held_out=collection.held_out,
        num_workers=workers,
        progress=report,
        collection=collection.report,
    )
    return {**result.to_dict(), "line": result.headline()}


def show_funnel(console: Console, summary: dict[str, Any]) -> None:
    """The funnel and the composition as tables."""
    from mify.curation.pipeline import CurationReport

    CurationReport(summary).print(console)


def tokenizer(config: DemoConfig, folder: Path, report: Report) -> dict[str, Any]:
    """corpus/documents.parquet → tokenizer/tokenizer.json."""
    from mify.tokenizer import train_tokenizer

    documents = _documents(folder)
    report("counting pairs", 0, len(documents))
    trained = train_tokenizer((document.text for document in documents), config.vocab_size)
    trained.save(folder / "tokenizer")
    report("counting pairs", len(documents), len(documents))
    num_bytes = sum(len(document.text.encode()) for document in documents)
    return {"vocab_size": trained.vocab_size, "bytes": num_bytes, "line": f"{trained.vocab_size:,} tokens"}


def tokenize(folder: Path, report: Report) -> dict[str, Any]:
    """corpus and tokenizer → tokens/{code,text,math}, memory-mapped shards."""
    from mify.data.shards import write_shards
    from mify.tokenizer import Tokenizer

    trained = Tokenizer.load(folder / "tokenizer")
    documents = _documents(folder)
    done = 0
    tokens: dict[str, int] = {}
    num_bytes: dict[str, int] = {}
    for domain in DOMAINS:
        chosen = [document for document in documents if document.domain == domain]

        def advance(count: int, domain: str = domain) -> None:
            nonlocal done
            done += count
            report(domain, done, len(documents))

        report(domain, done, len(documents))
        written = write_shards(chosen, trained, folder / "tokens" / domain, shard_bytes=8 << 20, progress=advance)
        tokens[domain], num_bytes[domain] = written.tokens, written.bytes
    ratio = sum(num_bytes.values()) / sum(tokens.values())
    line = f"{sum(tokens.values()):,} tokens, {ratio:.2f} bytes a token"
    return {"tokens": tokens, "bytes": num_bytes, "line": line}


def train_config(config: DemoConfig, folder: Path) -> TrainConfig:
    """The recipe `demo` on the demo's own tokens."""
    from mify.training.config import load_recipe

    total = sum(TARGET.values())
    overrides = [
        f"--folder={folder / 'runs'}",
        f"--seed={config.seed}",
        f"--model.vocab_size={config.vocab_size}",
        f"--data.tokenizer={folder / 'tokenizer'}",
        f"--evaluation.held_out={folder / 'corpus' / 'held_out.parquet'}",
    ]
    for domain in DOMAINS:
        overrides.append(f"--data.sources.{domain}.path={folder / 'tokens' / domain}")
        overrides.append(f"--data.sources.{domain}.weight={TARGET[domain] / total}")
    if config.steps is not None:
        # The recipe's shape of schedule, over another length.
        overrides += [
            f"--steps={config.steps}",
            f"--schedule.warmup_steps={config.steps // 20}",
            f"--schedule.decay_steps={config.steps // 5}",
        ]
    return load_recipe("demo", overrides)


def train(config: DemoConfig, folder: Path, report: Report) -> dict[str, Any]:
    """tokens → runs/demo with checkpoints and metrics.jsonl. Killed, it goes on from its last checkpoint, exactly."""
    from mify.training.display import status_line
    from mify.training.metrics import read_metrics
    from mify.training.trainer import train as run

    settings = train_config(config, folder)
    speeds: list[float] = []

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record:
            speeds.append(record["time"]["tokens_per_second"])
            report(status_line(step, steps, record).split("  ", 1)[1], step, steps)

    report("preparing", 0, settings.steps)
    result = run(settings, progress)
    records = read_metrics(result.folder / "metrics.jsonl")
    losses = [record["loss"] for record in records if record.get("loss") is not None]
    speed = sorted(speeds)[len(speeds) // 2] if speeds else 0.0
    return {
        "checkpoint": str(result.checkpoint.relative_to(folder)),
        "steps": result.step,
        "tokens_per_second": speed,
        "loss": losses[-1],
        "ledger": result.ledger,
        "line": f"loss {losses[0]:.2f} → {losses[-1]:.2f}, {speed:,.0f} tokens/s",
    }


def evaluate(config: DemoConfig, folder: Path, report: Report) -> dict[str, Any]:
    """The model → evaluation/: bits per byte and baselines, infilling, HumanEval executed in a sandbox."""
    from mify.eval.completers import MifyCompleter
    from mify.eval.evaluate import evaluate as run
    from mify.eval.evaluate import model_identity
    from mify.eval.humaneval import humaneval
    from mify.eval.infilling import held_out_lines
    from mify.eval.runner import RunOptions, run_task
    from mify.eval.sandbox import sandbox_kind
    from mify.loading import load

    model = load(folder / "runs" / "demo")
    held_out = _documents(folder, "held_out")
    completer = MifyCompleter(model, "mify-tiny", model_identity(model, "mify-tiny"))
    out = folder / "evaluation"
    results = run(
        completer,
        [held_out_lines(held_out, lines=config.infilling_lines)],
        out,
        model=model,
        held_out=held_out,
        training=_documents(folder),
        with_bits_per_byte=True,
        progress=report,
    )
    kind = sandbox_kind()
    if kind.confined:
        options = RunOptions(max_new_tokens=HUMANEVAL_NEW_TOKENS, limit=config.humaneval_problems)
        results.append(run_task(humaneval(), completer, out, options, report))
    else:
        # Generated code never runs unconfined: the report says what was left out, and what to install.
        results.append({"task": "humaneval", "skipped": f"nothing here can confine programs: {kind.reason}"})
    bits = next(result for result in results if result["task"] == "bits_per_byte")["all"]
    line = f"held-out bits per byte {bits['model']:.3f} (n-gram {bits['ngram']:.3f}, xz {bits['xz']:.3f})"
    return {"results": results, "line": line}


def export(folder: Path, report: Report) -> dict[str, Any]:
    """The model → export/hf and export/model.gguf, each compared with the model by the engine that loads it."""
    from mify.cli.demo.parity import check_gguf, check_hf
    from mify.export.gguf import export_gguf
    from mify.export.hf import export_hf
    from mify.loading import load

    model = load(folder / "runs" / "demo")
    prompt = next(document.text for document in _documents(folder, "held_out") if document.domain == "code")[:400]
    target = folder / "export"
    report("Hugging Face folder", 0, 4)
    export_hf(model, target / "hf")
    report("transformers", 1, 4)
    hf = check_hf(model, target / "hf", prompt)
    report("GGUF file", 2, 4)
    export_gguf(model, target / "mify-tiny.gguf")
    report("llama.cpp", 3, 4)
    gguf = check_gguf(model, target / "mify-tiny.gguf", prompt, GREEDY_TOKENS)
    write_json(target / "parity.json", {"hf": hf, "gguf": gguf})
    report("done", 4, 4)
    return {"hf": hf, "gguf": gguf, "line": f"{hf['verdict']}; {gguf['verdict']}"}


def _documents(folder: Path, name: str = "documents") -> Sequence[Document]:
    from mify.curation.documents import read_documents

    return list(read_documents(folder / "corpus" / f"{name}.parquet"))
