"""Insults and obscenities: `alt-profanity-check` (MIT), a linear classifier of 200,000 comments that people judged.

It is asked sentence by sentence, since one insult drowns in a long text, and underscores count as spaces, so that names
in code are read as words. Measured at its default threshold of 0.9: 2 of 7,473 questions of GSM8K (both about blood
being sucked), none of 974 tasks of MBPP, none of 10,270 sentences in the standard library's docstrings. 5 MB/s a core.
A word for harm alone ("kill the child process", 0.60) does not reach it, and neither does a threat in plain words
(0.44): this is no judge of intentions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from mify.curation.extras import found
from mify.errors import MifyError

DEFAULT_THRESHOLD = 0.9
_MAX_SENTENCE = 400
_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
_MODULE = "profanity_check"


@dataclass(frozen=True)
class ToxicityRules:
    """Whether prose that reads as an insult or obscene is dropped.

    Args:
        enabled: needs the extra `safety`. Off by default: the classifier is slow beside the other rules, and what a
            license, a manual or a docstring says is rarely rude.
        threshold: a document falls where its worst sentence reaches this probability.
        domains: whose documents are asked.
    """

    enabled: bool = False
    threshold: float = DEFAULT_THRESHOLD
    domains: tuple[str, ...] = ("text", "math")


def identity() -> dict[str, str]:
    """What a verdict depends on.

    Raises:
        MifyError: the classifier is not installed.
    """
    _require()
    return {name: metadata.version(name) for name in ("alt-profanity-check", "scikit-learn")}


def most_toxic(texts: Sequence[str]) -> list[tuple[float, str]]:
    """For each text the highest probability among its sentences, and that sentence; (0.0, "") for an empty one.

    Raises:
        MifyError: the classifier is not installed.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about the version that wrote the model
        from profanity_check import predict_prob

        rows = [_sentences(text) for text in texts]
        flat = [sentence for row in rows for sentence in row]
        probabilities = iter(predict_prob(flat).tolist() if flat else ())
    scored = ([(next(probabilities), sentence) for sentence in row] for row in rows)
    return [max(row, default=(0.0, ""), key=lambda pair: pair[0]) for row in scored]


def _sentences(text: str) -> list[str]:
    parts = [part.strip() for part in _ENDS.split(text.replace("_", " ")) if any(map(str.isalpha, part))]
    return [part[start : start + _MAX_SENTENCE] for part in parts for start in range(0, len(part), _MAX_SENTENCE)]


def _require() -> None:
    if not found(_MODULE):
        raise MifyError("the toxicity filter needs the package alt-profanity-check", "pip install 'mify[safety]'")
