"""`report.html` of a run: one self-contained page made from report.json alone, equal for equal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mify.files import atomic_file
from mify.page import render

_SIZE, _PAD, _TOP = 190, 26, 16
_FIGURES = ("auc", "precision", "recall", "accuracy", "ece", "brier")


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """The page as HTML."""
    stages = report["stages"]
    reasons = [(row["name"], reason, count) for row in stages for reason, count in row["rejected"].items()]
    reasons.sort(key=lambda entry: (-entry[2], entry[0], entry[1]))
    return render(
        "mify.post.synth",
        "report.html.jinja",
        report=report,
        tiles=tiles(report),
        widest=max((row["in"] for row in stages), default=0) or 1,
        reasons=reasons,
        judged=[(row["name"], _judged(row["facts"])) for row in stages if row["kind"] == "judge"],
        pairs=[(row["name"], row["facts"]["pairs"]) for row in stages if row["facts"].get("pairs")],
        notes=[(row["name"], note) for row in stages for note in _notes(row)],
        safety=report.get("conversations", {}).get("safety"),
        size=_SIZE,
        pad=_PAD,
        top=_TOP,
    )


def tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures to see first, with what they are."""
    account = report["account"]
    made = report.get("conversations", {}).get("count")
    cost = f"{account['cost']:,.4g}"
    cost += f" of {account['max_cost']:g}" if account["max_cost"] is not None else ""
    return [
        ("not finished" if made is None else f"{made:,}", "conversations"),
        (f"{account['requests']:,}", "requests sent"),
        (f"{account['prompt_tokens']:,}", "tokens asked"),
        (f"{account['new_tokens']:,}", "tokens answered"),
        (cost, "cost, in the prices' currency"),
    ]


def judge_verdict(facts: Mapping[str, Any]) -> str:
    """One sentence on whether the judges can be trusted."""
    measured = facts["reliability"].get("panel")
    if measured is None:
        return "No program with a verdict of execution was graded, so the judges' reliability is not measured."
    if measured["auc"]["value"] is None:
        return (
            f"{measured['items']} graded programs, {measured['passed']} of them passed: without both kinds the judges' "
            "reliability cannot be measured."
        )
    auc = measured["auc"]
    where = f"AUC {auc['value']:.2f} ({_number(auc['low'])} to {_number(auc['high'])}) on {measured['items']} programs"
    if measured["better_than_chance"]:
        return f"The judges tell passing from failing programs better than chance: {where}."
    end = "so they rejected nothing." if not facts["used"] else "and were used all the same, as the recipe says."
    return f"The judges do not tell passing from failing programs better than chance: {where}, {end}"


def _judged(facts: Mapping[str, Any]) -> dict[str, Any]:
    measured = facts["reliability"]
    named = [*measured.get("judges", {}).items()]
    if len(named) > 1:
        named.append(("all together", measured["panel"]))
    return {
        "facts": facts,
        "verdict": judge_verdict(facts),
        "figures": [
            {
                "name": name,
                "items": row["items"],
                "values": [
                    _figure(row[key]).split(" (") for key in ("auc", "precision", "recall", "accuracy", "ece", "brier")
                ],
                "points": _points(row["table"]),
            }
            for name, row in named
        ],
        "base": _figure(measured["panel"]["base"]) if measured else "",
        "agreement": _agreement(facts["agreement"]),
    }


def _agreement(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found:
        return []
    rows = [(f"{name}: Krippendorff's α, ordinal", _figure(value)) for name, value in found["alpha"].items()]
    rows.append(("passes or not: Fleiss' κ", _figure(found["verdicts"])))
    for pair in found["pairs"]:
        names = " and ".join(pair["judges"])
        rows += [
            (f"{names}, {'passes or not' if key == 'verdicts' else key}: Cohen's κ"
             + ("" if key == "verdicts" else ", quadratic"), _figure(value))
            for key, value in pair.items()
            if key != "judges"
        ]  # fmt: skip
    return rows


def _points(table: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Circles of a reliability diagram: mean score to the right, share that passed upwards, area by items."""
    whole = sum(row[2] for row in table) or 1
    return [
        {
            "x": f"{_PAD + row[3] * _SIZE:.1f}",
            "y": f"{_SIZE - row[4] * _SIZE + _TOP:.1f}",
            "r": f"{3 + 11 * (row[2] / whole) ** 0.5:.1f}",
            "title": f"score {row[3]:.2f}: {row[4]:.0%} of {row[2]:.0f} passed",
        }
        for row in table
    ]


def _notes(row: Mapping[str, Any]) -> list[str]:
    """What else a stage has to tell, in words."""
    facts, notes = row["facts"], []
    if row["unanswered"]:
        notes.append(f"{row['unanswered']:,} requests had no answer; run again and they are asked again.")
    if "statuses" in facts:
        ended = ", ".join(f"{count:,} {status}" for status, count in facts["statuses"].items())
        notes.append(f"Programs ended so: {ended or 'none ran'} (sandbox: {facts['sandbox']}).")
    if facts.get("unchecked"):
        named = ", ".join(f"{count:,} in {name}" for name, count in facts["unchecked"].items())
        notes.append(f"Nothing parses here: {named}.")
    if "index" in facts:
        looked = ", ".join(f"{name} ({value['tasks']:,} tasks)" for name, value in facts["index"]["benchmarks"].items())
        notes.append(f"Looked for {facts['index']['ngram']}-grams of {looked}.")
    if "analysers" in facts:
        notes.append(f"Analysers: {'; '.join(facts['analysers'])}. {facts['not looked at']:,} samples were not theirs.")
    if facts.get("finish"):
        notes.append("Answers ended by " + ", ".join(f"{name} ({n:,})" for name, n in facts["finish"].items()) + ".")
    return notes


def _figure(value: Mapping[str, float | None]) -> str:
    if value["value"] is None:
        return "not defined"
    return f"{value['value']:.2f} ({_number(value['low'])} to {_number(value['high'])})"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
