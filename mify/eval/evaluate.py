"""The benchmarks by name, and a run over several of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.eval.runner import Progress, RunOptions, run_task
from mify.eval.tasks import Task
from mify.files import write_json

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.eval.completers import Completer
    from mify.model import Model

BITS_PER_BYTE = "bpb"
INFILLING = "infilling"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark that `mify eval` knows: where its data lie and how its task is made of them.

    Args:
        file: the data file's name, looked for in the folder of benchmark files; None where a package carries the data.
        license: of the data.
        make: file → task (None where a package carries the data).
    """

    name: str
    about: str
    license: str
    file: str | None
    make: Callable[[Path | None], Task]


def _humaneval(path: Path | None) -> Task:
    from mify.eval.humaneval import humaneval

    return humaneval(path)


def _humaneval_plus(path: Path | None) -> Task:
    from mify.eval.humaneval_plus import humaneval_plus

    return humaneval_plus(_given(path))


def _mbpp(path: Path | None) -> Task:
    from mify.eval.mbpp import mbpp

    return mbpp(_given(path))


def _cruxeval(predict: str) -> Callable[[Path | None], Task]:
    def make(path: Path | None) -> Task:
        from mify.eval.cruxeval import cruxeval

        return cruxeval(_given(path), predict)

    return make


def _humaneval_infilling(kind: str) -> Callable[[Path | None], Task]:
    def make(path: Path | None) -> Task:
        from mify.eval.infilling import humaneval_infilling

        return humaneval_infilling(_given(path), kind)

    return make


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


_INFILLING_FILE = "HumanEval-{}Infilling.jsonl.gz"
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("humaneval", "164 functions from docstrings, executed", "MIT", None, _humaneval),
        Benchmark(
            "humanevalplus", "the same with many more tests", "Apache-2.0", "HumanEvalPlus.jsonl.gz", _humaneval_plus
        ),
        Benchmark("mbpp", "500 short tasks with asserts, executed", "CC-BY-4.0", "mbpp.jsonl.gz", _mbpp),
        Benchmark("cruxeval-output", "predict a function's output", "MIT", "cruxeval.jsonl", _cruxeval("output")),
        Benchmark("cruxeval-input", "predict a function's input", "MIT", "cruxeval.jsonl", _cruxeval("input")),
        *(
            Benchmark(
                f"humaneval-infilling-{kind}",
                f"{kind} gaps in HumanEval's solutions, executed",
                "MIT",
                _INFILLING_FILE.format(word),
                _humaneval_infilling(kind),
            )
            for kind, word in (
                ("single-line", "SingleLine"),
                ("multi-line", "MultiLine"),
                ("random-span", "RandomSpan"),
            )
        ),
    )
}


def tasks_by_name(
    names: Sequence[str], data: str | os.PathLike[str] | None, held_out: Callable[[], Sequence[Document]]
) -> list[Task]:
    """The tasks of these names; `bpb` is no task of its own and is left to the caller.

    Args:
        data: the folder of benchmark files, for those that no package carries; searched with its subfolders.
        held_out: gives the held-out documents, when a task needs them.

    Raises:
        MifyError: an unknown name, or its data are not there.
    """
    tasks = []
    for name in names:
        if name == INFILLING:
            from mify.eval.infilling import held_out_lines

            tasks.append(held_out_lines(held_out()))
        elif name in BENCHMARKS:
            tasks.append(BENCHMARKS[name].make(_find(BENCHMARKS[name], data)))
        elif name != BITS_PER_BYTE:
            known = ", ".join([*BENCHMARKS, INFILLING, BITS_PER_BYTE])
            raise MifyError(f"the task {name!r} is unknown", f"use some of {known}")
    return tasks


def _find(benchmark: Benchmark, data: str | os.PathLike[str] | None) -> Path | None:
    if benchmark.file is None:
        return None
    if data is None:
        raise MifyError(
            f"{benchmark.name} needs the file {benchmark.file} ({benchmark.license}), which no package carries",
            "name the folder that holds it with --data, or in MIFY_EVAL_DATA",
        )
    names = (benchmark.file, benchmark.file.removesuffix(".gz"))
    found = sorted(file for name in names for file in Path(data).rglob(name))
    if not found:
        raise MifyError(f"{benchmark.file} is not in {data}", "name the folder that holds it with --data")
    return found[0]


def model_identity(model: Model, name: str) -> dict[str, Any]:
    """What tells a model apart in the records: its name, shape, tokenizer, and the SHA-256 of its weights."""
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {
        "name": name,
        "kind": "mify",
        "parameters": model.num_parameters(),
        "weights_sha256": digest.hexdigest(),
        "tokenizer": model.require_tokenizer().fingerprint,
    }


def evaluate(
    completer: Completer,
    tasks: Sequence[Task],
    out: str | os.PathLike[str],
    *,
    options: RunOptions | None = None,
    model: Model | None = None,
    held_out: Sequence[Document] = (),
    training: Sequence[Document] = (),
    with_bits_per_byte: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Runs the tasks, then bits per byte, and writes out/evaluation.json with all results.

    Args:
        completer: the model as the tasks ask it.
        model: the model itself, for bits per byte.
        held_out: documents for bits per byte.
        training: the documents that the model was trained on: for the baselines of bits per byte, and to say beside
            each score which of its items stand in them.

    Returns:
        One result per task, as in the file.
    """
    results = []
    for task in tasks:
        result = run_task(task, completer, out, options, progress)
        if training and task.texts is not None:
            from mify.eval.contamination import contamination

            result["contamination"] = contamination(task, training, result, Path(out))
            write_json(Path(out) / f"{task.name}.json", result)
        results.append(result)
    if with_bits_per_byte:
        from mify.eval.bits_per_byte import evaluate_bits_per_byte

        if model is None:
            raise MifyError("bits per byte needs the model's own probabilities", "give a model that mify loads")
        results.append(evaluate_bits_per_byte(model, held_out, training, progress=progress))
        write_json(Path(out) / "bits_per_byte.json", results[-1])
    write_json(Path(out) / "evaluation.json", {"format": "evaluations", "version": 1, "results": results})
    return results
