"""The demo's pictures, drawn with matplotlib into PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from mify.files import atomic_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, MUTED, GRID = "#1c2530", "#6b7785", "#e3e7ec"
BLUE, ORANGE, GREEN, RED = "#2f6fb0", "#d97b29", "#3a8f5f", "#b8433f"
DOMAIN_COLORS = {"code": BLUE, "text": ORANGE, "math": GREEN}

_STYLE = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": INK,
    "figure.dpi": 144,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class FunnelStep:
    """One stage of curation: how many documents and bytes it kept, and the reasons for what it rejected."""

    name: str
    kept: int
    rejected: int
    kept_bytes: int


def funnel(steps: Sequence[FunnelStep], path: Path) -> None:
    """Horizontal bars of the documents that are left after each stage, the rejected part beside."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 0.42 * len(steps) + 0.9))
        names = [step.name for step in steps]
        axes.barh(names, [step.kept for step in steps], color=BLUE, height=0.66)
        axes.barh(names, [step.rejected for step in steps], left=[step.kept for step in steps], color=RED, height=0.66)
        widest = max(step.kept + step.rejected for step in steps)
        for row, step in enumerate(steps):
            text = f"{step.kept:,}" + (f"  (−{step.rejected:,})" if step.rejected else "")
            axes.text(step.kept + step.rejected + widest * 0.01, row, text, va="center", fontsize=9.5)
        axes.set_xlim(0, widest * 1.22)
        axes.invert_yaxis()
        axes.set_title("Documents left after each stage (rejected in red)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.tick_params(axis="y", length=0)
        _save(figure, path)


def composition(
    available: Mapping[str, int], trained: Mapping[str, float], target: Mapping[str, float], path: Path
) -> None:
    """Shares by domain: of the bytes that were found, of the tokens that were trained on, and the target."""
    rows = {
        "found (bytes)": _shares(available),
        "trained (tokens)": _shares(trained),
        "target": _shares(target),
    }
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 2.1))
        left = dict.fromkeys(rows, 0.0)
        for domain, color in DOMAIN_COLORS.items():
            for name, shares in rows.items():
                share = shares.get(domain, 0.0)
                axes.barh(
                    name, share, left=left[name], color=color, height=0.62, label=domain if name == "target" else None
                )
                if share >= 0.045:
                    axes.text(
                        left[name] + share / 2,
                        name,
                        f"{share:.1%}",
                        ha="center",
                        va="center",
                        color="white",
                        fontsize=9,
                    )
                left[name] += share
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title("Composition by domain")
        axes.legend(
            ncols=3, frameon=False, loc="upper right", bbox_to_anchor=(1.0, 1.26), fontsize=9.5, handlelength=1.0
        )
        _save(figure, path)


def loss_curve(
    steps: Sequence[int], losses: Sequence[float], held_out: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    """Training loss over steps, and held-out bits per byte by domain where it was measured."""
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.9))
        left.plot(steps, losses, color=BLUE, linewidth=0.7, alpha=0.35)
        left.plot(steps, _smooth(losses), color=BLUE, linewidth=1.6)
        left.set_title("Training loss (nats a token)")
        left.set_xlabel("step")
        left.grid(axis="y", color=GRID)
        for domain, points in held_out.items():
            if points:
                color = DOMAIN_COLORS.get(domain, MUTED)
                xs, ys = [x for x, _ in points], [y for _, y in points]
                right.plot(xs, ys, color=color, linewidth=1.6, marker="o", markersize=3, label=f"{domain} {ys[-1]:.2f}")
        right.set_title("Held-out bits per byte")
        right.set_xlabel("step")
        right.grid(axis="y", color=GRID)
        if right.lines:
            right.legend(frameon=False, fontsize=9.5)
        figure.tight_layout()
        _save(figure, path)


Curve = Sequence[tuple[int, float]]


def post_training(panels: Sequence[tuple[str, Curve]], solved: Mapping[str, float], path: Path) -> None:
    """A panel each of (title, points over steps), and bars of the held-out tasks solved before and after."""
    with plt.rc_context(_STYLE):
        count = len(panels) + bool(solved)
        figure, axes = plt.subplots(1, count, figsize=(7.6, 2.4), squeeze=False)
        for axis, (title, points), color in zip(axes[0], panels, (BLUE, ORANGE, GREEN), strict=False):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axis.plot(xs, ys, color=color, linewidth=0.7, alpha=0.35)
            axis.plot(xs, _smooth(ys, 0.1), color=color, linewidth=1.6)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
            axis.grid(axis="y", color=GRID)
        if solved:
            axis = axes[0, -1]
            bars = axis.bar(list(solved), [100 * value for value in solved.values()], color=(MUTED, GREEN), width=0.6)
            axis.bar_label(bars, fmt="%.0f%%", fontsize=9.5)
            axis.set_title("Held-out specs solved", fontsize=10)
            axis.set_ylim(0, max(10.0, 125 * max(solved.values())))
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
        figure.tight_layout()
        _save(figure, path)


def seconds_by_stage(stages: Sequence[tuple[str, float, str]], path: Path) -> None:
    """Horizontal bars of (stage, seconds, throughput text)."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 0.42 * len(stages) + 0.9))
        names = [name for name, _, _ in stages]
        seconds = [value for _, value, _ in stages]
        axes.barh(names, seconds, color=BLUE, height=0.62)
        for row, (_, value, text) in enumerate(stages):
            axes.text(
                value + max(seconds) * 0.01,
                row,
                f"{value:.1f} s" + (f"   {text}" if text else ""),
                va="center",
                fontsize=9.5,
            )
        axes.set_xlim(0, max(seconds) * 1.5)
        axes.invert_yaxis()
        axes.set_title("Seconds and throughput by stage")
        axes.tick_params(axis="y", length=0)
        _save(figure, path)


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    return {name: value / total for name, value in parts.items()} if total else {}


def _smooth(values: Sequence[float], window: float = 0.03) -> list[float]:
    """An exponential mean with bias correction, over about `window` of the curve."""
    decay = 1.0 - 1.0 / max(1.0, window * len(values))
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1.0 - decay) * value
        weight = decay * weight + (1.0 - decay)
        out.append(mean / weight)
    return out


def _save(figure: Any, path: Path) -> None:
    # No metadata: the same figures give the same bytes.
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)
