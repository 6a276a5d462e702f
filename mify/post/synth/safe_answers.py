"""Answers to harmful requests that decline: from templates, or from a model that is told how; both are checked."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from mify.errors import MifyError
from mify.eval.refusals import refuses
from mify.files import text_lines
from mify.post.safety import categories
from mify.post.synth.client import Request
from mify.post.synth.prompts import filled
from mify.post.synth.samples import Outcome, Rejected, Sample, digest
from mify.post.synth.stage import Context, Stage, draw
from mify.post.synth.wanted import Wanted, answered


@dataclass(frozen=True)
class SafeAnswers(Stage):
    """One sample for each harmful request: the request, and an answer that declines.

    Args:
        requests: JSON lines with `prompt` and `category` (a number of `mify.post.safety`). Requests come from the user:
            none are carried here, and a benchmark's own would spoil the benchmark.
        answers: "template": one of `mify/post/refusals.toml`, by a keyed hash; "endpoint": a model's.
        endpoint, max_new_tokens, temperature: for the latter.
    """

    requests: str = ""
    answers: Literal["template", "endpoint"] = "template"
    endpoint: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.7

    kind: ClassVar[str] = "safe-answers"
    about: ClassVar[str] = "harmful requests with answers that decline"
    source: ClassVar[bool] = True
    prompted: ClassVar[bool] = True

    def check(self, where: str) -> None:
        if not self.requests:
            raise MifyError(f"{where}.requests is missing", "give JSON lines with prompt and category")
        if (self.answers == "endpoint") != bool(self.endpoint):
            raise MifyError(
                f"{where}: answers = {self.answers!r} with endpoint = {self.endpoint!r}", "set both or neither"
            )

    def asks(self) -> tuple[str, ...]:
        return (self.endpoint,) if self.endpoint else ()

    def files(self) -> tuple[str, ...]:
        return (self.requests,)

    def identity(self) -> dict[str, Any]:
        return {"templates": digest(_templates())} if self.answers == "template" else {}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        asked, rejected = _read(Path(self.requests))
        if self.answers == "template":
            made = Outcome([self._from_template(context, sample) for sample in asked], rejected)
        else:
            made = answered(context, [self._wanted(context, sample) for sample in asked], rejected)
        kept, lost = [], list(made.rejected)
        for sample in made.kept:
            sample = replace(sample, answer=sample.answer or sample.response.strip(), response="")
            if not sample.answer:
                lost.append(Rejected(sample, "an empty answer"))
            elif not refuses(sample.answer):
                lost.append(Rejected(sample, "it does not decline", sample.answer[:300]))
            else:
                kept.append(sample)
        return Outcome(kept, lost, made.facts, made.unanswered)

    def _from_template(self, context: Context, sample: Sample) -> Sample:
        templates = _templates()
        text = templates[draw(context.seed, context.name, sample.id) % len(templates)]
        name = categories()[sample.category].name
        name = name if name[:2].isupper() else name[0].lower() + name[1:]  # but for abbreviations, inside a sentence
        origin = {"stage": context.name, "answer": "template"}
        return replace(sample, answer=text.replace("{category}", name), origin=origin)

    def _wanted(self, context: Context, sample: Sample) -> Wanted:
        system = filled(context.prompts, "safe_system", category=str(categories()[sample.category]))
        request = Request(
            self.endpoint,
            context.client.model(self.endpoint),
            (("system", system), ("user", filled(context.prompts, "safe_answer", problem=sample.problem))),
            self.max_new_tokens,
            self.temperature,
            seed=draw(context.seed, context.name, sample.id) >> 33,
        )
        return Wanted(request, {"answer": "endpoint"}, problem=sample.problem, category=sample.category)


def _read(path: Path) -> tuple[list[Sample], list[Rejected]]:
    try:
        lines = text_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} cannot be read ({error})", "give JSON lines with prompt and category") from None
    found, rejected = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt, id = value["prompt"], value["category"]
        except (ValueError, KeyError, TypeError):
            rejected.append(Rejected(Sample(f"{path.name}:{number}"), "no JSON with prompt and category", line[:300]))
            continue
        sample = Sample(digest("request", prompt, id), problem=str(prompt), category=str(id))
        if id not in categories():
            rejected.append(Rejected(replace(sample, category=""), "no category of risk", str(id)[:300]))
        elif not sample.problem.strip():
            rejected.append(Rejected(sample, "an empty request"))
        else:
            found.append(sample)
    return found, rejected


def _templates() -> list[str]:
    file = Path(__file__).parents[1] / "refusals.toml"
    return [str(text) for text in tomllib.loads(file.read_text(encoding="utf-8"))["answers"]]
