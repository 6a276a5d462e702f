"""Safety in the data: categories of risk, and what a set of conversations holds of them.

Categories are those of AIR-Bench 2024 (`safety_categories.json`: numbers and names, CC-BY-4.0, attributed there), 314
in four levels. A conversation belongs to safety by its `category`: a number of the taxonomy ("1.2.13"). All others are
general. The mixture itself is drawn by the trainer, exactly by count: `data.sources.*.parts` (1 and 4).
"""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mify.errors import MifyError

RATIO = (1, 4)
"""Harmful to general, as in arXiv 2512.23747."""


@dataclass(frozen=True, slots=True)
class Category:
    """A category of risk: its number, and its names from the widest level to its own.

    Args:
        id: "16.45.8": the second level's number, the third's, its own within the second.
    """

    id: str
    area: str
    risk: str
    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.risk} / {self.group} / {self.name}"


@cache
def categories() -> dict[str, Category]:
    """All 314, by number."""
    file = Path(__file__).with_name("safety_categories.json")
    tree = json.loads(file.read_text(encoding="utf-8"))["categories"]
    return {
        id: Category(id, area, risk, group, name)
        for area, risks in tree.items()
        for risk, groups in risks.items()
        for group, names in groups.items()
        for id, name in names.items()
    }


def category(id: str) -> Category:
    """The category of a number.

    Raises:
        MifyError: there is none.
    """
    found = categories().get(id)
    if found is None:
        near = difflib.get_close_matches(id, categories(), n=1)
        raise MifyError(
            f"{id!r} is no category of risk", f"did you mean {near[0]}?" if near else "they look like 1.2.13"
        )
    return found


def conversations_report(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """`safety_report` of files of conversations.

    Raises:
        MifyError: a file cannot be read, or a line is no conversation.
    """
    from mify.post.chat import BadConversation, Conversation

    found = []
    for path in paths:
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise MifyError(f"{path} cannot be read ({error.strerror})", "give files of conversations") from None
        for number, line in enumerate(lines, start=1):
            try:
                found += [Conversation.from_json(line).category] if line.strip() else []
            except BadConversation as error:
                raise MifyError(f"{path}, line {number}: {error}", "let mify convert sort such lines out") from None
    return safety_report(found)


def is_harmful(category_id: str) -> bool:
    """Whether a sample of this category belongs to safety."""
    return category_id in categories()


def safety_report(categories_of: Iterable[str]) -> dict[str, Any]:
    """What a set of samples holds of safety: counts of harmful and general ones, by risk, and categories without any.

    Args:
        categories_of: the category of each sample, "" for none.
    """
    counts = Counter(categories_of)
    known = categories()
    harmful = sum(count for id, count in counts.items() if id in known)
    risks: Counter[str] = Counter()
    for id, count in counts.items():
        if id in known:
            risks[known[id].risk] += count
    return {
        "format": "safety-mixture",
        "version": 1,
        "samples": counts.total(),
        "harmful": harmful,
        "general": counts.total() - harmful,
        "ratio": round((counts.total() - harmful) / harmful, 4) if harmful else None,
        "risks": {risk: risks[risk] for risk in dict.fromkeys(item.risk for item in known.values())},
        "categories": sum(id in known for id in counts),
        "of_categories": len(known),
    }


def check_ratio(harmful: int, general: int, ratio: Sequence[int] = RATIO) -> None:
    """Whether counts of samples stand exactly in a ratio, harmful to general.

    Raises:
        MifyError: they do not, or the ratio is none.
    """
    if len(ratio) != 2 or min(ratio) < 1:
        raise MifyError(f"{list(ratio)} is no ratio of harmful to general", "give two whole numbers from 1 up: [1, 4]")
    if not harmful or harmful * ratio[1] != general * ratio[0]:
        raise MifyError(
            f"{harmful:,} harmful and {general:,} general conversations are not {ratio[0]}:{ratio[1]}",
            f"give their sources data.sources.*.parts = {ratio[0]} and {ratio[1]}; harmful is what has a number of "
            "mify.post.safety for its category",
        )
