"""What arXiv 2512.23747 (Mify-Coder, 2.5 B parameters) reports, to stand beside one's own scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mify.eval.bfcl import CATEGORIES

PAPER = "arXiv 2512.23747"


@dataclass(frozen=True, slots=True)
class Reported:
    """A figure of the paper's table, in percent.

    Args:
        tasks: the tasks here that it stands beside; their unweighted mean where there are several.
        note: why the two may differ besides the models.
    """

    benchmark: str
    percent: float
    tasks: tuple[str, ...]
    note: str = ""


TABLE = (
    Reported("HumanEval", 53.66, ("humaneval",)),
    Reported("HumanEval+", 48.78, ("humanevalplus",)),
    Reported("MBPP", 91.21, ("mbpp",), "37 points above its HumanEval, which is unusual: no target"),
    Reported("MBPP+", 89.15, ("mbppplus",)),
    Reported("NumpyEval", 56.44, ("numpyeval",)),
    Reported("PandasEval", 53.47, ("pandaseval",)),
    Reported(
        "BFCL v2",
        55.26,
        tuple(f"bfcl-{category.replace('_', '-')}" for category in CATEGORIES),
        "here the unweighted mean of v4's categories that an AST judges; v2 also executes calls",
    ),
)


def beside(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a figure of the paper: {"benchmark", "paper", "here" or None, "of", "tasks", "note"}, in percent.

    Only whole benchmarks are compared: a score over some of the items is none of the benchmark's.
    """
    scores = {
        result["task"]: 100 * result["score"]
        for result in results
        if "score" in result and result["items"] == result["of_items"]
    }
    rows = []
    for reported in TABLE:
        found = [scores[name] for name in reported.tasks if name in scores]
        here = sum(found) / len(found) if len(found) == len(reported.tasks) else None
        rows.append(
            {
                "benchmark": reported.benchmark,
                "paper": reported.percent,
                "here": here,
                "tasks": reported.tasks,
                "note": reported.note,
            }
        )
    return rows
