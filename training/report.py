"""`report.html` in the run folder: what the run was and how it went, one self-contained page with its curves as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mify.files import atomic_file, read_json
from mify.typed_tree import flatten

from .metrics import read_metrics

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 64, 28, 10
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 720px; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } .grey { color: #6a6f78 } svg { max-width: 100% }
"""


def write_report(run: Path, ledger: dict[str, Any]) -> Path:
    """Writes the page from `metrics.jsonl` and `config.json` of the run folder; returns its path."""
    records = read_metrics(run / "metrics.jsonl")
    document = read_json(run / "config.json")
    steps = [record for record in records if record.get("loss") is not None]
    scores = [record for record in records if "held_out_bits_per_byte" in record]
    events = [record for record in records if "event" in record]
    config = document["config"]
    parts = [
        f"<h1>{html.escape(config['name'])}</h1>",
        f"<p>{html.escape(config['description'])}</p>",
        f"<p class=grey>configuration {document['hash'][:12]}</p>",
        _summary(steps, scores),
    ]
    curves: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
        ("Loss, nats per token", lambda r: r["loss"]),
        ("Gradient norm", lambda r: r["gradient_norm"]),
        ("Learning rate", lambda r: r["learning_rate"]),
        ("Tokens per second", lambda r: r["time"]["tokens_per_second"]),
    ]
    for title, value in curves:
        points = [(float(r["step"]), float(y)) for r in steps if (y := value(r)) is not None]
        parts.append(f"<h2>{title}</h2>{svg({'': points})}")
    if scores:
        lines: dict[str, list[tuple[float, float]]] = {}
        for record in scores:
            for domain, value_ in record["held_out_bits_per_byte"].items():
                lines.setdefault(domain, []).append((float(record["step"]), value_))
        parts.append(f"<h2>Held-out bits per byte</h2>{svg(lines) if len(scores) > 1 else ''}")
        parts.append(_table(["domain", "last"], [[d, f"{v[-1][1]:.4f}"] for d, v in lines.items()]))
    exact = [(float(r["step"]), 100 * r["infilling_exact_match"]) for r in scores if "infilling_exact_match" in r]
    if exact:
        parts.append(f"<h2>Held-out lines infilled exactly, %</h2>{svg({'': exact}) if len(exact) > 1 else ''}")
        parts.append(_table(["last"], [[f"{exact[-1][1]:.1f}"]]))
    parts.append("<h2>Tokens by source</h2>")
    parts.append(
        _table(
            ["source", "tokens", "epochs"],
            [[name, f"{entry['tokens']:,}", f"{entry['epochs']:.2f}"] for name, entry in ledger.items()],
        )
    )
    if any("conversations" in entry for entry in ledger.values()):
        parts.append("<h2>Conversations</h2>" + _conversations(ledger))
    if events:
        rows = [[str(r["step"]), r["event"], str(r.get("reason", "")), _first(r.get("documents", []))] for r in events]
        parts.append("<h2>Events</h2>" + _table(["step", "what", "why", "documents"], rows))
    flat = [[key, "none" if value is None else str(value)] for key, value in flatten(config).items()]
    parts.append("<h2>Configuration</h2>" + _table(["key", "value"], flat, numbers=False))
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(config['name'])}</title>"
    with atomic_file(run / "report.html") as temporary:
        temporary.write_text(f"{page}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n", encoding="utf-8")
    return run / "report.html"


def _first(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more in metrics.jsonl" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _summary(steps: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]]) -> str:
    if not steps:
        return "<p>No step was recorded.</p>"
    last = steps[-1]
    speeds = sorted(record["time"]["tokens_per_second"] for record in steps)
    rows = [
        ["steps", f"{last['step']:,}"],
        ["labelled tokens trained", f"{last['trained_tokens']:,}"],
        ["loss, first and last", f"{steps[0]['loss']:.4f}, {last['loss']:.4f}"],
        ["tokens per second, median", f"{speeds[len(speeds) // 2]:,.0f}"],
        ["evaluations", str(len(scores))],
    ]
    return _table(["", ""], rows)


def _conversations(ledger: dict[str, Any]) -> str:
    """What became of the lines of conversations, by source."""
    rows = []
    for name, entry in ledger.items():
        rejected = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in entry["rejected"].items())
        counts = [
            f"{entry[key]:,}" for key in ("conversations", "supervised", "too_long", "truncated", "supervised_cut")
        ]
        rows.append([name, *counts, rejected or "0"])
    head = [
        "source",
        "kept",
        "tokens with loss, trained",
        "too long",
        "cut to fit",
        "tokens with loss lost",
        "rejected",
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head) if any(head) else ""
    body = ""
    for row in rows:
        cells = [f"<td>{html.escape(row[0])}</td>"]
        cells += [
            f"<td{' class=n' if numbers and _is_number(cell) else ''}>{html.escape(cell)}</td>" for cell in row[1:]
        ]
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<table><tr>{top}</tr>{body}</table>" if top else f"<table>{body}</table>"


def _is_number(text: str) -> bool:
    return bool(text) and all(character in "0123456789.,e+-% " for character in text)


def svg(lines: dict[str, list[tuple[float, float]]]) -> str:
    """Named lines of finite points on linear axes; at most 600 points each, the mean of what falls together."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return "<p class=grey>nothing recorded</p>"
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    right = 90 if any(lines) else 12
    ticks = _ticks(y0, y1)
    y0, y1 = min(y0, ticks[0]), max(y1, ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0) if y1 > y0 else 0.5
        return LEFT + across * (WIDTH - LEFT - right), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="11" font-family="sans-serif">']
    for tick in ticks:
        _, y = place(x0, tick)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - right}" stroke="#e4e6ea"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#6a6f78">{_label(tick)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        left, _ = place(x, y0)
        where = f'x="{left:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}"'
        out.append(f'<text {where} fill="#6a6f78">step {x:,.0f}</text>')
    for index, (name, line) in enumerate(lines.items()):
        color = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")[index % 4]
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in _thin(line))
        out.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5" stroke-linejoin="round"/>')
        if name:
            x, y = place(*line[-1])
            out.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="{color}">{html.escape(name)}</text>')
    return "".join(out) + "</svg>"


def _thin(line: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    width = max(1, math.ceil(len(line) / most))
    groups = [line[start : start + width] for start in range(0, len(line), width)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values that span low to high."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    first = math.floor(low / step)
    return [round(index * step, 12) for index in range(first, math.ceil(high / step) + 1)]


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
