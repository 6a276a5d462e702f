"""From the stages' summaries to what the report shows."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mify.cli.demo.charts import FunnelStep
from mify.cli.demo.pipeline import Stamp
from mify.cli.demo.report import Infill, Post, ReportData
from mify.cli.demo.stages import DOMAINS, TARGET, DemoConfig
from mify.files import text_lines

SHOWN_CHARACTERS = 420  # of the text on each side of an infilled line


def report_data(config: DemoConfig, stamps: Mapping[str, Stamp], folder: Path) -> ReportData:
    """All that the page shows, from the stamps, `metrics.jsonl` and the records of the evaluation."""
    from mify.training.metrics import read_metrics

    curation, training = stamps["curate"].summary, stamps["train"].summary
    evaluation = {result["task"]: result for result in stamps["evaluate"].summary["results"]}
    records = read_metrics(folder / "runs" / "demo" / "metrics.jsonl")
    steps = [record for record in records if record.get("loss") is not None]
    held_out: dict[str, list[tuple[int, float]]] = {domain: [] for domain in DOMAINS}
    for record in records:
        for domain, value in record.get("held_out_bits_per_byte", {}).items():
            held_out.setdefault(domain, []).append((record["step"], value))
    bits = evaluation["bits_per_byte"]
    parameters = evaluation["infilling"]["model"]["parameters"]
    totals = curation["totals"]
    return ReportData(
        headline=[
            (f"{totals['in']['bytes'] / 1e6:.1f} MB", "collected"),
            (f"{totals['kept']['bytes'] / 1e6:.1f} MB", "kept by curation"),
            (f"{parameters / 1e6:.2f} M", "parameters"),
            (f"{sum(row['tokens'] for row in training['ledger'].values()) / 1e6:.2f} M", "tokens trained"),
            (f"{bits['all']['model']:.3f}", "held-out bits per byte"),
            (f"{evaluation['infilling']['score']:.0%}", "held-out lines infilled exactly"),
        ],
        funnel=_funnel(curation),
        reasons=[
            (row["stage"], reason, count["documents"])
            for row in curation["stages"]
            for reason, count in sorted(row["reasons"].items(), key=lambda pair: -pair[1]["documents"])
        ],
        notes=_notes(curation, training),
        available={domain: row["available_bytes"] for domain, row in curation["mixture"]["domains"].items()},
        trained={domain: float(row["tokens"]) for domain, row in training["ledger"].items()},
        target={domain: float(share) for domain, share in TARGET.items()},
        steps=[record["step"] for record in steps],
        losses=[record["loss"] for record in steps],
        held_out=held_out,
        bits_per_byte=_bits_per_byte(bits),
        verdict=_verdict(bits["all"], training),
        scores=_scores(evaluation),
        samples=_samples(folder, evaluation["infilling"]),
        exports=_exports(folder, stamps["export"].summary),
        stages=_stages(stamps),
        machine=[
            ("python", platform.python_version()),
            ("processor", f"{platform.machine()}, {os.cpu_count()} cores"),
            ("seed", str(config.seed)),
        ],
        post=_post(stamps) if "grpo" in stamps else None,
    )


def _post(stamps: Mapping[str, Stamp]) -> Post:
    made, sft, dpo, grpo = (stamps[name].summary for name in ("instructions", "sft", "dpo", "grpo"))
    panels = [("SFT loss", sft["curve"]), ("DPO margin", dpo["curve"])]
    rows = [
        (
            "SFT",
            f"{made['functions']} functions of the corpus by their docstrings, and verifiable specs with answers",
            f"functions: {sft['bits_before']:.3f} → {sft['bits_after']:.3f} bits per byte",
        ),
        (
            "DPO",
            "pairs of a real function and what the model wrote instead",
            f"of its training pairs it prefers the real one in {dpo['accuracy'][-1][1]:.0%}",
        ),
    ]
    solved: dict[str, float] = {}
    if "skipped" in grpo:
        rows.append(("GRPO", "hidden tests of specs", f"not run: {grpo['skipped']}"))
    else:
        panels.append(("GRPO reward", grpo["curve"]))
        solved = grpo["solved"]
        change = f"{grpo['tasks']} specs, two samples each: {solved['before']:.0%} → {solved['after']:.0%} solved"
        rows.append(("GRPO", "hidden tests of other specs, run in the sandbox; no answers", change))
    example = (grpo["example"]["question"], grpo["example"]["answer"]) if "example" in grpo else None
    curves = [(title, [(int(step), float(value)) for step, value in points]) for title, points in panels]
    return Post(curves, solved, rows, example)


def _funnel(curation: Mapping[str, Any]) -> list[FunnelStep]:
    steps = [FunnelStep("collected", curation["totals"]["in"]["documents"], 0, curation["totals"]["in"]["bytes"])]
    for row in curation["stages"]:
        steps.append(
            FunnelStep(row["stage"], row["kept"]["documents"], row["rejected"]["documents"], row["kept"]["bytes"])
        )
    return steps


def _notes(curation: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    notes = [curation["mixture"]["statement"][:1].upper() + curation["mixture"]["statement"][1:] + "."]
    seen = ", ".join(f"{domain} {row['epochs']:.2f}" for domain, row in training["ledger"].items())
    notes.append(f"Passes over each domain in this run: {seen}.")
    repeated = curation["collection"].get("docstring_bytes_of_training_files", 0)
    if repeated:
        notes.append(f"{repeated / 1e6:.1f} MB of docstrings stand in text and in the code they come from.")
    return notes


def _bits_per_byte(result: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    names = {
        "model": "mify-tiny",
        "ngram": result["baselines"]["ngram"].split(",")[0] + ", trained on the corpus",
        "xz": "xz, held-out text alone",
        "xz_trained": "xz, after the corpus in the same window",
    }
    rows = {**result["domains"], "all": result["all"]}
    return [
        (label, {domain: row[name] for domain, row in rows.items() if name in row})
        for name, label in names.items()
        if name in result["all"]
    ]


def _verdict(bits: Mapping[str, float], training: Mapping[str, Any]) -> str:
    """Whether the model beats the baselines over all domains, and what each of them has seen."""
    names = {"ngram": "the n-gram", "xz": "xz alone", "xz_trained": "xz after the corpus"}
    beaten = [names[key] for key in names if key in bits and bits["model"] < bits[key]]
    ahead = [names[key] for key in names if key in bits and bits["model"] >= bits[key]]
    tokens = sum(row["tokens"] for row in training["ledger"].values())
    parts = []
    if beaten:
        parts.append(f"The model beats {' and '.join(beaten)}.")
    if ahead:
        parts.append(f"The model loses to {' and '.join(ahead)}.")
    parts.append(
        f"It has read {tokens / 1e6:.1f} million tokens, a part of the corpus, and sees at most 512 at a time; the "
        "n-gram and the second xz have read all of the corpus, and xz keeps the whole held-out text in view."
    )
    return " ".join(parts)


def _scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    infilling, humaneval = evaluation["infilling"], evaluation["humaneval"]
    scores = [
        (
            "Infilling, exact match",
            f"{infilling['score']:.1%} ({infilling['passed']} of {infilling['items']})",
            "single lines of held-out files, the rest of the file before and behind",
        )
    ]
    if "skipped" in humaneval:
        return [*scores, ("HumanEval pass@1", "not measured", humaneval["skipped"])]
    sandbox = humaneval["judged"]["sandbox"]
    meaning = f"greedy, executed in {sandbox}; near zero is what a model of this size scores"
    count = f"{humaneval['passed']} of {humaneval['items']}"
    return [*scores, ("HumanEval pass@1", f"{humaneval['score']:.1%} ({count})", meaning)]


def _samples(folder: Path, infilling: Mapping[str, Any], number: int = 2) -> list[Infill]:
    """Two infillings: the longest line that came out exactly, then the first of those that did not."""
    from mify.curation.documents import read_documents
    from mify.eval.infilling import held_out_lines

    documents = list(read_documents(folder / "corpus" / "held_out.parquet"))
    paths = {document.id[:16]: f"{document.repo}: {document.path}" for document in documents}
    items = {item.id: item.fields for item in held_out_lines(documents, lines=infilling["items"]).items}
    lines = text_lines(folder / "evaluation" / "infilling.verdicts.jsonl")
    verdicts = {record["id"]: record for record in map(json.loads, lines[1:])}  # the first line is the header
    exact = [name for name in items if verdicts[name]["status"] == "passed"]
    wrong = [name for name in items if verdicts[name]["status"] != "passed" and verdicts[name].get("answer")]
    exact.sort(key=lambda name: (-len(items[name]["middle"]), name))
    chosen = (exact[:1] + wrong[:number])[:number]
    samples = []
    for name in chosen:
        fields = items[name]
        identity, line = name.split(":")
        samples.append(
            Infill(
                path=f"{paths[identity]}, line {line}",
                prefix=_tail(fields["prefix"]),
                suffix=_head(fields["suffix"]),
                expected=fields["middle"],
                generated=verdicts[name]["answer"],
            )
        )
    return samples


def _tail(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[-SHOWN_CHARACTERS:].partition("\n")[2]


def _head(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rpartition("\n")[0]


def _exports(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    def size(path: Path) -> str:
        files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
        return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"

    names = {"hf": "hf", "gguf": "mify-tiny.gguf"}
    target = folder / "export"
    return [(f"export/{name}", size(target / name), summary[kind]["verdict"]) for kind, name in names.items()]


def _stages(stamps: Mapping[str, Stamp]) -> list[tuple[str, float, str]]:
    tokens = stamps["tokenize"].summary
    rates = {
        "curate": (stamps["curate"].summary["totals"]["in"]["bytes"], 1e6, "MB/s"),
        "tokenizer": (stamps["tokenizer"].summary["bytes"], 1e6, "MB/s"),
        "tokenize": (sum(tokens["bytes"].values()), 1e6, "MB/s"),
    }
    rows = []
    for name, stamp in stamps.items():
        text = ""
        if name in rates:
            amount, unit, label = rates[name]
            text = f"{amount / unit / max(stamp.seconds, 1e-3):.1f} {label}"
        elif name == "train":
            text = f"{stamp.summary['tokens_per_second']:,.0f} tokens/s"
        rows.append((name, stamp.seconds, text))
    return rows
