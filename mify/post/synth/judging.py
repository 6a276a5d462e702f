"""The stage `judge`: models grade samples by a rubric, and are graded themselves.

Their agreement is measured on all that they graded. Their reliability is measured against execution: programs
that ran upstream, those that passed their tests and those that failed them, are graded as well, without a word on how
they ended. Judges that cannot tell the two apart do not reject anything, unless the recipe insists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.post.judge import OutOfRubricError, Rubric, load_rubric
from mify.post.judge_agreement import cohens_kappa, fleiss_kappa, interval, krippendorff_alpha
from mify.post.judge_reliability import Figure, reliability
from mify.post.synth.client import Request
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage, draw

# Verdicts of `execution` that say something about the code; "not run" says nothing.
_FAILED = ("failed", "exited", "timeout", "memory", "output", "crashed", "forged")
MAX_SAID = 3


@dataclass(frozen=True)
class Judge(Stage):
    """Grades by a rubric.

    Args:
        endpoints: the judges.
        rubric: a TOML file; the package's own by default.
        rule: "mean": the mean of the judges' scores decides; "majority" of them; "all" of them.
        attempts: how often a judge is asked whose answer does not count, each time with another seed.
        max_new_tokens, temperature: of an answer.
        undecided: what becomes of samples that no judge gave a valid answer on.
        calibrate: programs with a verdict of `execution` that the judges grade to be measured; 0 for none.
        calibrate_on: the stage whose verdicts; the nearest of kind execution upstream by default.
        when_unreliable: of judges no better than chance: "label": they grade, but reject nothing; "use": they reject
            all the same; "stop": the run ends with an error.
    """

    endpoints: tuple[str, ...] = ()
    rubric: str = ""
    rule: Literal["mean", "majority", "all"] = "mean"
    attempts: int = 2
    max_new_tokens: int = 512
    temperature: float = 0.0
    undecided: Literal["reject", "keep"] = "reject"
    calibrate: int = 200
    calibrate_on: str = ""
    when_unreliable: Literal["label", "use", "stop"] = "label"

    kind: ClassVar[str] = "judge"
    looks_back: ClassVar[bool] = True
    about: ClassVar[str] = "models grade by a rubric; their agreement and reliability are measured"

    def check(self, where: str) -> None:
        if not self.endpoints or len(set(self.endpoints)) < len(self.endpoints):
            raise MifyError(f"{where}.endpoints is empty or names a judge twice", "name each judge once")
        if self.attempts < 1 or self.max_new_tokens < 1 or self.calibrate < 0 or self.temperature < 0:
            raise MifyError(f"{where} asks nothing", "attempts and max_new_tokens >= 1, calibrate and temperature >= 0")
        load_rubric(self.rubric or None)

    def asks(self) -> tuple[str, ...]:
        return self.endpoints

    def identity(self) -> dict[str, Any]:
        return {"rubric": load_rubric(self.rubric or None).to_plain()}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        rubric = load_rubric(self.rubric or None)
        verdicts = self._with_verdicts(context) if self.calibrate and rubric.calibrated else {}
        asked = {sample.id: sample for sample in [*samples, *(sample for sample, _ in verdicts.values())]}
        bench = [_Bench(name) for name in self.endpoints]
        # All judges' first answers at once: each endpoint has its own pace.
        context.ask([request for judge in bench for request in judge.first(context, self, rubric, asked.values())])
        for judge in bench:
            judge.ask(context, self, rubric, list(asked.values()))
        measured = _reliability(rubric, bench, verdicts, context.seed)
        panel = measured.get("panel")
        reliable = panel is None or bool(panel["better_than_chance"])
        if not reliable and self.when_unreliable == "stop":
            assert panel is not None
            raise MifyError(
                f"the judges of {context.name} do not tell passing from failing programs (AUC {panel['auc']['value']}, "
                f"from {panel['auc']['low']})",
                'take others, or set when_unreliable = "label"',
            )
        used = reliable or self.when_unreliable == "use"
        kept, rejected = self._decided(rubric, bench, samples, used)
        facts = {
            "rubric": rubric.to_plain(),
            "judges": {judge.name: judge.report(context) for judge in bench},
            "agreement": _agreement(rubric, bench, list(asked), context.seed),
            "reliability": measured,
            "used": used,
        }
        return Outcome(kept, rejected, facts, sum(judge.unanswered for judge in bench))

    def _with_verdicts(self, context: Context) -> dict[str, tuple[Sample, bool]]:
        """Programs that ran upstream, with whether they passed; `calibrate` of them by a keyed hash."""
        stages = [
            stage
            for stage in context.upstream()
            if (stage.name == self.calibrate_on if self.calibrate_on else stage.kind == "execution")
        ]
        if not stages:
            if self.calibrate_on:
                raise MifyError(
                    f"{context.name}.calibrate_on = {self.calibrate_on!r} is no stage before it",
                    "name a stage of kind execution that it builds on",
                )
            return {}
        pool = [*stages[0].kept(), *(sample for sample, _ in stages[0].rejected())]
        found: dict[str, tuple[Sample, bool]] = {}
        for sample in sorted(pool, key=lambda sample: draw(context.seed, "calibrate", sample.id)):
            status = sample.notes.get("execution", {}).get("status")
            vacuous = status == "passed" and sample.id not in {item.id for item in stages[0].kept()}
            if status in ("passed", *_FAILED) and not vacuous and len(found) < self.calibrate:
                found[sample.id] = (sample, status == "passed")
        return found

    def _decided(
        self, rubric: Rubric, bench: Sequence[_Bench], samples: Sequence[Sample], used: bool
    ) -> tuple[list[Sample], list[Rejected]]:
        kept, rejected = [], []
        for sample in samples:
            grades = {judge.name: judge.grades[sample.id] for judge in bench if sample.id in judge.grades}
            if not grades:
                noted = sample.noted("judge", {"undecided": True})
                if self.undecided == "reject" and used:
                    rejected.append(Rejected(noted, "no judge gave an answer that counts"))
                else:
                    kept.append(noted)
                continue
            scores = {name: rubric.score(found) for name, found in grades.items()}
            mean = sum(scores.values()) / len(scores)
            noted = sample.noted("judge", {"grades": grades, "score": round(mean, 4)})
            reason = self._reason(rubric, grades, mean)
            if reason and used:
                rejected.append(Rejected(noted, reason, str(grades)))
            else:
                kept.append(noted)
        return kept, rejected

    def _reason(self, rubric: Rubric, grades: Mapping[str, Mapping[str, int]], mean: float) -> str:
        """Why a sample falls, "" where it stays."""
        passed = sum(rubric.passes(found) for found in grades.values())
        if self.rule == "all":
            return "" if passed == len(grades) else "not all judges pass it"
        if self.rule == "majority":
            return "" if 2 * passed > len(grades) else "no majority passes it"
        for name, item in rubric.criteria.items():
            grade = sum(found[name] for found in grades.values()) / len(grades)
            if item.minimum is not None and grade < item.minimum:
                return f"{name} below {item.minimum}"
        return "" if mean >= rubric.threshold - 1e-9 else f"score below {rubric.threshold:g}"


@dataclass
class _Bench:
    """One judge's grades, and what it said that does not count."""

    name: str
    grades: dict[str, dict[str, int]] = field(default_factory=dict)
    unanswered: int = 0
    _asked: int = 0
    _answers: int = 0
    _void: Counter[str] = field(default_factory=Counter)
    _said: dict[str, list[str]] = field(default_factory=dict)
    _no_answer: Counter[str] = field(default_factory=Counter)

    def first(self, context: Context, settings: Judge, rubric: Rubric, samples: Iterable[Sample]) -> Iterator[Request]:
        """The requests that `ask` begins with."""
        return (self._request(context, settings, rubric, sample, 0) for sample in samples)

    def ask(self, context: Context, settings: Judge, rubric: Rubric, samples: Sequence[Sample]) -> None:
        """Asks until each sample has grades or the attempts are used up."""
        self._asked = len(samples)
        left = list(samples)
        for attempt in range(settings.attempts):
            requests = [self._request(context, settings, rubric, sample, attempt) for sample in left]
            context.ask(requests)
            again = []
            for sample, request in zip(left, requests, strict=True):
                answer = context.client.answer(request)
                if answer.text is None:
                    self._no_answer[answer.problem.split(":", 1)[0]] += 1
                    self.unanswered += not context.client.is_final(request)
                    continue
                self._answers += 1
                try:
                    self.grades[sample.id] = rubric.read(answer.text)
                except OutOfRubricError as error:
                    self._void[error.reason] += 1
                    said = self._said.setdefault(error.reason, [])
                    if len(said) < MAX_SAID:
                        said.append(error.said[:300])
                    again.append(sample)
            left = again

    def report(self, context: Context) -> dict[str, Any]:
        """What it was asked and what came of it."""
        return {
            "model": context.client.model(self.name),
            "samples": self._asked,
            "answers": self._answers,
            "graded": len(self.grades),
            "out of rubric": dict(sorted(self._void.items())),
            "said": dict(sorted(self._said.items())),
            "no answer": dict(sorted(self._no_answer.items())),
        }

    def column(self, ids: Sequence[str], criterion: str) -> list[float]:
        """Its grades of a criterion, NaN where there is none."""
        return [float(self.grades[id][criterion]) if id in self.grades else np.nan for id in ids]

    def _request(self, context: Context, settings: Judge, rubric: Rubric, sample: Sample, attempt: int) -> Request:
        return Request(
            self.name,
            context.client.model(self.name),
            (("system", rubric.instruction), ("user", rubric.question(sample.problem, sample.answer))),
            settings.max_new_tokens,
            # Asked again greedily it would say the same.
            settings.temperature if attempt == 0 else max(settings.temperature, 0.7),
            seed=attempt,
            response_format=rubric.response_format(context.client.structured(self.name)),
        )


def _agreement(rubric: Rubric, bench: Sequence[_Bench], ids: Sequence[str], seed: int) -> dict[str, Any]:
    """Krippendorff's alpha of each criterion, Fleiss' kappa of the verdicts, Cohen's kappa of each two judges."""
    if len(bench) < 2 or not ids:
        return {}

    def measured(table: NDArray[np.float64], statistic: Any) -> dict[str, float | None]:
        return Figure(statistic(table), *interval(table, statistic, seed=seed)).to_dict()

    def verdicts(judge: _Bench) -> list[float]:
        return [float(rubric.passes(judge.grades[id])) if id in judge.grades else np.nan for id in ids]

    passes = np.array([verdicts(judge) for judge in bench]).T
    main = rubric.calibrated or next(iter(rubric.criteria))
    return {
        "samples": len(ids),
        "alpha": {
            name: measured(np.array([judge.column(ids, name) for judge in bench]).T, krippendorff_alpha)
            for name in rubric.criteria
        },
        "verdicts": measured(passes, fleiss_kappa),
        "pairs": [
            {
                "judges": [first.name, second.name],
                "verdicts": measured(passes[:, [one, two]], lambda table: cohens_kappa(table[:, 0], table[:, 1])),
                main: measured(
                    np.array([first.column(ids, main), second.column(ids, main)]).T,
                    lambda table: cohens_kappa(table[:, 0], table[:, 1], "quadratic"),
                ),
            }
            for one, first in enumerate(bench)
            for two, second in enumerate(bench)
            if one < two
        ],
    }


def _reliability(
    rubric: Rubric, bench: Sequence[_Bench], verdicts: Mapping[str, tuple[Sample, bool]], seed: int
) -> dict[str, Any]:
    """Of each judge and of their mean ("panel"), by the criterion that execution measures."""
    if not verdicts:
        return {}
    name = rubric.calibrated
    criterion = rubric.criteria[name]
    wanted = rubric.share(name, criterion.minimum) if criterion.minimum is not None else rubric.threshold
    found = {}
    shares: dict[str, list[float]] = {}
    for judge in bench:
        graded = [id for id in verdicts if id in judge.grades]
        scores = [rubric.share(name, judge.grades[id][name]) for id in graded]
        for id, score in zip(graded, scores, strict=True):
            shares.setdefault(id, []).append(score)
        found[judge.name] = reliability(scores, [verdicts[id][1] for id in graded], wanted, seed=seed).to_dict()
    means = [sum(shares[id]) / len(shares[id]) for id in shares]
    panel = reliability(means, [verdicts[id][1] for id in shares], wanted, seed=seed).to_dict()
    return {"criterion": name, "programs": len(verdicts), "judges": found, "panel": panel}
