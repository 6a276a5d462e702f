"""Stages that look at code without running it: `syntax` and `secure-code`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mify.errors import MifyError
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage

_UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Syntax(Stage):
    """Whether code and tests parse: Python by its own parser, others by tree-sitter, as curation does.

    Args:
        unknown: what becomes of code in a language that nothing here parses.
    """

    unknown: Literal["keep", "reject"] = "keep"

    kind: ClassVar[str] = "syntax"
    about: ClassVar[str] = "code and tests must parse"

    def identity(self) -> dict[str, Any]:
        from mify.curation.extras import versions
        from mify.curation.syntax import SyntaxRules, modules

        return versions(set(modules(SyntaxRules())))

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        kept: list[Sample] = []
        rejected: list[Rejected] = []
        unchecked: Counter[str] = Counter()
        for sample in samples:
            language = sample.language or "unknown"
            found = {"code": self._problem(sample.code, language), "tests": self._problem(sample.tests, language)}
            what = next((name for name, problem in found.items() if problem not in (None, _UNCHECKED)), None)
            if _UNCHECKED in found.values():
                unchecked[language] += 1
            if what is not None:
                rejected.append(Rejected(sample, f"{what}: no {language}", str(found[what])))
            elif _UNCHECKED in found.values() and self.unknown == "reject":
                rejected.append(Rejected(sample, f"nothing parses {language} here"))
            else:
                kept.append(sample)
        return Outcome(kept, rejected, {"unchecked": dict(sorted(unchecked.items()))})

    def _problem(self, text: str, language: str) -> str | None:
        from mify.curation.quality import syntax_problem
        from mify.curation.syntax import SyntaxRules, checked_languages, syntax_finding

        if not text:
            return None
        if language == "python":
            return syntax_problem(text)
        rules = SyntaxRules(max_error_fraction=0.0)
        if language not in checked_languages(rules):
            return _UNCHECKED
        finding = syntax_finding(text, language, rules)
        return None if finding is None else str(finding.value)


@dataclass(frozen=True)
class SecureCode(Stage):
    """Whether static analysers find a weakness in the code (`mify.eval.insecure_code`).

    Args:
        allow: weaknesses (CWE-78 …) that do not count.
    """

    allow: tuple[str, ...] = ()

    kind: ClassVar[str] = "secure-code"
    about: ClassVar[str] = "static analysers find no weakness in the code"

    def check(self, where: str) -> None:
        wrong = next((name for name in self.allow if not name.startswith("CWE-")), None)
        if wrong is not None:
            raise MifyError(f"{where}.allow: {wrong!r} is no weakness", "write it as CWE-78")

    def identity(self) -> dict[str, Any]:
        from mify.eval.insecure_code import analysers

        return {"analysers": analysers()}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.eval.insecure_code import SUFFIXES, analyse, analysers

        looked_at = [sample for sample in samples if sample.code and sample.language in SUFFIXES]
        findings = analyse([(sample.language, sample.code) for sample in looked_at]) if looked_at else []
        by_id = {sample.id: found for sample, found in zip(looked_at, findings, strict=True)}
        kept, rejected = [], []
        for sample in samples:
            found = [finding for finding in by_id.get(sample.id, ()) if finding.cwe not in self.allow]
            if found:
                rejected.append(Rejected(sample, found[0].cwe, "; ".join(map(str, found[:5]))))
            else:
                kept.append(sample)
        return Outcome(kept, rejected, {"analysers": analysers(), "not looked at": len(samples) - len(looked_at)})
