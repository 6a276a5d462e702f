"""`report.html` of an evaluation: one self-contained page made from its results and records, equal for equal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.paper import PAPER, beside
from mify.eval.records import read_records
from mify.files import atomic_file
from mify.page import render

MAX_EXAMPLES = 2
MAX_CHARACTERS = 1200
_WIDTH = 220


def write_page(folder: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Writes folder/report.html from the results and the records beside it, atomically."""
    path = folder / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page(results, folder), encoding="utf-8")
    return path


def page(results: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The page as HTML."""
    scored = [result for result in results if "scores" in result]
    model = scored[0]["model"] if scored else {}
    bits = [result for result in results if result["task"] == "bits_per_byte"]
    names = ("model", "ngram", "xz_trained", "xz")
    return render(
        "mify.eval",
        "report.html.jinja",
        model=model,
        lead=_lead(scored, model),
        scores=[row for result in scored for row in _rows(result)],
        paper=PAPER,
        comparison=beside(scored) if any(row["here"] is not None for row in beside(scored)) else [],
        contamination=[(result["task"], result["contamination"]) for result in scored if "contamination" in result],
        unchecked=[result["task"] for result in scored if "contamination" not in result],
        bits=[
            {"rows": [*result["domains"].items(), ("all", result["all"])],
             "names": [name for name in names if name in result["all"]], "baselines": result["baselines"]}
            for result in bits
        ],
        results=scored,
        examples=[(result["task"], found) for result in scored if (found := _examples(result["task"], folder))],
        width=_WIDTH,
    )  # fmt: skip


def _lead(scored: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> str:
    items = sum(result["items"] for result in scored)
    parts = [f"{len(scored)} tasks, {items:,} items"]
    if "parameters" in model:
        parts.insert(0, f"{model['parameters'] / 1e6:,.1f} M parameters")
    return ", ".join(parts) + "."


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a metric, with the places of its interval on a bar of the page's width."""
    rows = []
    for metric, score in result["scores"].items():
        low, value, high = (score[name] for name in ("low", "value", "high"))
        first = metric == next(iter(result["scores"]))
        rows.append(
            {
                "task": result["task"] if first else "",
                "metric": "exact match" if result["judged"]["how"] == "exact match" else metric,
                "value": f"{100 * value:.1f}",
                "interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "x": f"{_WIDTH * low:.1f}",
                "length": f"{max(1.0, _WIDTH * (high - low)):.1f}",
                "point": f"{_WIDTH * value:.1f}",
                "passed": f"{result['passed']:,} of {result['items']:,}" if first else "",
                "partly": result["items"] != result["of_items"],
                "of_items": result["of_items"],
                "ended": ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
                if first
                else "",
            }
        )
    return rows


def _examples(task: str, folder: Path) -> list[dict[str, str]]:
    """The first answers that passed, and the first that did not, in order of id."""
    try:
        completions = read_records(folder / f"{task}.completions.jsonl", "completions")
        verdicts = read_records(folder / f"{task}.verdicts.jsonl", "verdicts")
    except MifyError:
        return []  # results without their records
    by_key = {(record["id"], record["sample"]): record for record in completions}
    found = []
    for wanted in (True, False):
        chosen = [record for record in verdicts if (record["status"] == "passed") == wanted][:MAX_EXAMPLES]
        for record in chosen:
            asked = by_key.get((record["id"], record["sample"]))
            if asked is not None:
                found.append(
                    {
                        "id": str(record["id"]),
                        "status": record["status"],
                        "detail": str(record["detail"])[:300],
                        "prompt": _end(asked["prompt"]),
                        "suffix": _start(asked["suffix"] or ""),
                        "completion": _start(asked["completion"] or ""),
                    }
                )
    return found


def _start(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _end(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else "… " + text[-MAX_CHARACTERS:]
