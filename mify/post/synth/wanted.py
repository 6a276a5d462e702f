"""From requests to samples: what generation hands over to the client, and what it makes of the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mify.post.synth.client import Request
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request and what its sample is to say of itself.

    Args:
        origin: seed, cell or parent.
        fields: of the sample that are known before.
    """

    request: Request
    origin: dict[str, Any]
    language: str = ""
    problem: str = ""
    category: str = ""


def answered(context: Context, wanted: Sequence[Wanted], rejected: Sequence[Rejected] = ()) -> Outcome:
    """Has all requests answered; those without an answer are rejected with its reason."""
    context.ask([entry.request for entry in wanted])
    kept: list[Sample] = []
    lost = list(rejected)
    finishes: Counter[str] = Counter()
    unanswered = 0
    for entry in wanted:
        request = entry.request
        answer = context.client.answer(request)
        origin = {
            "stage": context.name, "model": request.model, "request": request.key, "finish": answer.finish,
            **entry.origin,
        }  # fmt: skip
        sample = Sample(
            request.key, problem=entry.problem, language=entry.language, category=entry.category,
            response=answer.text or "", origin=origin,
        )  # fmt: skip
        if answer.text is None:
            unanswered += not context.client.is_final(request)
            lost.append(Rejected(sample, f"no answer: {_class_of(answer.problem)}", answer.problem))
        else:
            finishes[answer.finish or "not told"] += 1
            kept.append(sample)
    facts = {"requests": len(wanted), "finish": dict(sorted(finishes.items()))}
    return Outcome(kept, lost, facts, unanswered)


def _class_of(problem: str) -> str:
    """The part of a problem that others share: `HTTP 500`, `ReadTimeout`."""
    return problem.split(":", 1)[0].split("(", 1)[0].strip()[:60]
