"""The demo's report: one self-contained HTML page, and the PNGs beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mify.cli.demo import charts
from mify.files import atomic_file
from mify.page import render


@dataclass(frozen=True)
class Infill:
    """One infilling sample: what stood around the hole, what was there and what the model wrote."""

    path: str
    prefix: str
    suffix: str
    expected: str
    generated: str


@dataclass(frozen=True)
class Post:
    """What `--post` adds: curves, and what each step changed in words."""

    panels: list[tuple[str, list[tuple[int, float]]]]  # (title, points over steps)
    solved: dict[str, float]  # shares of held-out specs, before and after GRPO; empty where nothing could confine it
    rows: list[tuple[str, str, str]]  # (step, what it learnt from, what changed on held-out data)
    example: tuple[str, str] | None  # a held-out spec and what the model writes


@dataclass(frozen=True)
class ReportData:
    """All the page shows, in the order it shows it."""

    headline: list[tuple[str, str]]  # (figure, what it is)
    funnel: list[charts.FunnelStep]
    reasons: list[tuple[str, str, int]]  # (stage, reason, documents)
    notes: list[str]  # what was repeated, re-weighted, missing
    available: dict[str, int]  # bytes by domain
    trained: dict[str, float]  # tokens by domain
    target: dict[str, float]  # shares by domain
    steps: list[int]
    losses: list[float]
    held_out: dict[str, list[tuple[int, float]]]
    bits_per_byte: list[tuple[str, dict[str, float]]]  # (model or baseline, bits per byte by domain)
    verdict: str  # in words, whether the model beats the baselines
    scores: list[tuple[str, str, str]]  # (task, score, what it means)
    samples: list[Infill]
    exports: list[tuple[str, str, str]]  # (file, size, what was verified)
    stages: list[tuple[str, float, str]]  # (stage, seconds, throughput)
    machine: list[tuple[str, str]] = field(default_factory=list)
    post: Post | None = None


def write_report(data: ReportData, folder: Path) -> None:
    """Writes funnel.png, composition.png, loss.png, stages.png, with `--post` post.png, and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    charts.funnel(data.funnel, folder / "funnel.png")
    charts.composition(data.available, data.trained, data.target, folder / "composition.png")
    charts.loss_curve(data.steps, data.losses, data.held_out, folder / "loss.png")
    if data.post is not None:
        charts.post_training(data.post.panels, data.post.solved, folder / "post.png")
    charts.seconds_by_stage(data.stages, folder / "stages.png")
    best = {
        domain: min(values[domain] for _, values in data.bits_per_byte if domain in values)
        for domain in (*charts.DOMAIN_COLORS, "all")
        if any(domain in values for _, values in data.bits_per_byte)
    }
    page = render(
        "mify.cli.demo",
        "report.html.jinja",
        data=data,
        best=best,
        domains=list(best),
        picture=lambda name: _data_url(folder / name),
    )
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _data_url(path: Path) -> Any:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
