"""The model card's section on safety: what was trained to decline, and what was measured."""

from __future__ import annotations

from typing import Any

# Task of `mify eval` → what its score is the share of.
_MEASURED = {
    "airbench": "harmful requests (AIR-Bench 2024) that are declined",
    "false-refusals": "benign requests that sound dangerous (CyberSecEval) that are answered",
    "insecure-code": "answers without a weakness that static analysers find (CyberSecEval)",
}


def safety_section(conversations: dict[str, Any] | None, evaluation: dict[str, Any] | None) -> str:
    """Markdown, from `mify.post.safety.conversations_report` and an evaluation.json; None is "not stated"."""
    return "\n".join(["## Safety", "", _trained(conversations), "", _measured(evaluation), ""])


def _trained(report: dict[str, Any] | None) -> str:
    if report is None:
        return "Conversations that it was tuned on: not stated."
    text = f"Tuned on {report['samples']:,} conversations"
    if not report["harmful"]:
        return text + ", none of them an answer to a harmful request."
    text += (
        f", {report['harmful']:,} of them answers to harmful requests (1 to {report['ratio']:g} others) in "
        f"{report['categories']} of the {report['of_categories']} categories of AIR 2024:\n\n"
    )
    rows = [f"| {risk} | {count:,} |" for risk, count in report["risks"].items() if count]
    lacking = [risk for risk, count in report["risks"].items() if not count]
    text += "\n".join(["| risk | conversations |", "| --- | --- |", *rows])
    return text + (f"\n\nWithout any: {', '.join(lacking)}." if lacking else "")


def _measured(evaluation: dict[str, Any] | None) -> str:
    rows = []
    for result in (evaluation or {}).get("results", ()):
        about = next((text for task, text in _MEASURED.items() if result["task"].startswith(task)), None)
        if about is None:
            continue
        score = next(iter(result["scores"].values()))  # the task's own metric comes first
        cells = (about, f"{score['value']:.1%}", f"{score['low']:.1%} to {score['high']:.1%}", str(result["items"]))
        rows.append(f"| {' | '.join(cells)} | {result['judged']['how']} |")
    if not rows:
        return "Refusals, over-refusals and insecure code: not measured."
    head = ["| share of | score | 95% interval | items | judged by |", "| --- | --- | --- | --- | --- |"]
    note = "A model that declines everything would reach 100% in the first line and nothing in the second."
    return "\n".join([*head, *rows, "", note])
