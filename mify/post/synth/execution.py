"""The stage `execution`: code runs with its tests in the sandbox, and tests must fail without the code."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mify.errors import MifyError
from mify.eval.programs import Program, Verdict
from mify.post.synth.samples import Outcome, Rejected, Sample, digest
from mify.post.synth.stage import Context, Stage

EXECUTABLE = ("python",)


@dataclass(frozen=True)
class Execution(Stage):
    """Runs code and tests, confined (`mify.eval.sandbox`).

    Args:
        cpu_s, wall_s: seconds of a program. memory_mb: of it.
        packages: installed packages that programs may import beside the standard library.
        strict: solution and tests in two processes for all, not only for those that could bend a verdict.
        vacuous: reject tests that also pass when the solution's functions return what nothing expects.
        untested: what becomes of samples that cannot be run (another language, no tests).
        workers: programs at a time; one a core by default.
        allow_unconfined: run where nothing can confine programs.
    """

    cpu_s: float = 5.0
    wall_s: float = 20.0
    memory_mb: int = 1024
    packages: tuple[str, ...] = ()
    strict: bool = False
    vacuous: bool = True
    untested: Literal["keep", "reject"] = "keep"
    workers: int | None = None
    allow_unconfined: bool = False

    kind: ClassVar[str] = "execution"
    about: ClassVar[str] = "code must pass its tests in the sandbox, and the tests must need the code"

    def check(self, where: str) -> None:
        if min(self.cpu_s, self.wall_s, self.memory_mb) <= 0:
            raise MifyError(f"{where} leaves a program nothing to run with", "cpu_s, wall_s and memory_mb above 0")

    def identity(self) -> dict[str, Any]:
        return {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.eval.launch import sandbox_kind

        runnable = {sample.id: sample for sample in samples if sample.language in EXECUTABLE and sample.tests}
        programs = {id: Program(id, sample.code, sample.tests) for id, sample in runnable.items()}
        if self.vacuous:
            programs |= {_stub(id): Program(_stub(id), stub(item.code), item.tests) for id, item in runnable.items()}
        # Two samples with the same code and tests are one program.
        keys = {id: digest(program.source, program.tests) for id, program in programs.items()}
        distinct = {keys[id]: replace(program, id=keys[id]) for id, program in programs.items()}
        verdicts = self._verdicts(context, distinct)
        kept, rejected, statuses = self._sorted_out(samples, runnable, {id: verdicts[key] for id, key in keys.items()})
        facts = {"statuses": statuses, "sandbox": sandbox_kind().name if programs else "not used"}
        return Outcome(kept, rejected, facts)

    def _verdicts(self, context: Context, programs: dict[str, Program]) -> dict[str, dict[str, Any]]:
        """Those of earlier runs, and of the programs that have none yet; each is kept as it comes."""
        from mify.eval.records import Journal
        from mify.eval.sandbox import Limits, run_programs

        settings: dict[str, Any] = {"cpu_s": self.cpu_s, "wall_s": self.wall_s, "memory_mb": self.memory_mb}
        settings |= {"strict": self.strict, "packages": list(self.packages)}
        path = context.folder / f"{context.name}.{digest(settings)[:8]}.verdicts.jsonl"
        with Journal(path, "synth-verdicts", settings, ("key",)) as journal:
            missing = [program for key, program in programs.items() if (key,) not in journal.records]
            done = 0

            def keep(verdict: Verdict) -> None:
                nonlocal done
                done += 1
                journal.add({"key": verdict.id, "status": verdict.status, "detail": verdict.detail[:500]})
                context.progress(context.name, done, len(missing))

            run_programs(
                missing,
                workers=self.workers,
                limits=Limits(wall_s=self.wall_s, cpu_s=self.cpu_s, memory_bytes=self.memory_mb << 20),
                form="apart" if self.strict else "auto",
                packages=self.packages,
                allow_unconfined=self.allow_unconfined,
                on_verdict=keep,
            )
            journal.finish()
            return {key: journal.records[(key,)] for key in programs}

    def _sorted_out(
        self, samples: Sequence[Sample], runnable: dict[str, Sample], verdicts: dict[str, dict[str, Any]]
    ) -> tuple[list[Sample], list[Rejected], dict[str, int]]:
        kept, rejected = [], []
        statuses: Counter[str] = Counter()
        for sample in samples:
            if sample.id not in runnable:
                statuses["not run"] += 1
                why = "no tests" if sample.language in EXECUTABLE else f"{sample.language or 'no language'} is not run"
                if self.untested == "reject":
                    rejected.append(Rejected(sample, why))
                else:
                    kept.append(sample.noted("execution", {"status": "not run", "why": why}))
                continue
            verdict = verdicts[sample.id]
            statuses[verdict["status"]] += 1
            noted = sample.noted("execution", {"status": verdict["status"]})
            if verdict["status"] != "passed":
                kind = verdict["detail"].split(":", 1)[0].strip() if verdict["status"] == "failed" else ""
                named = f"failed: {kind}" if re.fullmatch(r"[A-Za-z_.]{1,60}", kind) else verdict["status"]
                rejected.append(Rejected(noted, named, verdict["detail"]))
            elif self.vacuous and verdicts[_stub(sample.id)]["status"] == "passed":
                rejected.append(Rejected(noted, "its tests pass without it"))
            else:
                kept.append(noted)
        return kept, rejected, dict(sorted(statuses.items()))


def _stub(id: str) -> str:
    """The name of a sample's second program."""
    return f"{id}/stub"


def stub(code: str) -> str:
    """The code, its functions replaced by ones that return an object equal to nothing, its classes' methods, too.

    Raises nothing: what does not parse is returned as it is, and fails as the code does.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    nothing = ast.parse("return object()").body
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            node.body = nothing
            node.decorator_list = []
    return ast.unparse(ast.fix_missing_locations(tree))
