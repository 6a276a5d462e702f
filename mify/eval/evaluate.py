"""The benchmarks by name, and a run over several of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.eval.humaneval import humaneval
from mify.eval.tasks import Progress, RunOptions, Task, run_task
from mify.files import write_json

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.eval.completers import Completer
    from mify.model import Model

BITS_PER_BYTE = "bpb"


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
        held_out, training: documents, for bits per byte and its baselines.

    Returns:
        One result per task, as in the file.
    """
    results = [run_task(task, completer, out, options, progress) for task in tasks]
    if with_bits_per_byte:
        from mify.eval.bits_per_byte import evaluate_bits_per_byte

        if model is None:
            raise MifyError("bits per byte needs the model's own probabilities", "give a model that mify loads")
        results.append(evaluate_bits_per_byte(model, held_out, training, progress=progress))
        write_json(Path(out) / "bits_per_byte.json", results[-1])
    write_json(Path(out) / "evaluation.json", {"format": "evaluations", "version": 1, "results": results})
    return results


def tasks_by_name(
    names: Sequence[str], data: str | os.PathLike[str] | None, held_out: Callable[[], Sequence[Document]]
) -> list[Task]:
    """The tasks of these names; `bpb` is no task of its own and is left to the caller.

    Args:
        data: the folder of benchmark files, for those that no package carries.
        held_out: gives the held-out documents, when a task needs them.

    Raises:
        MifyError: an unknown name, or its data are not there.
    """
    from mify.eval.infilling import held_out_lines

    tasks = []
    for name in names:
        if name == "humaneval":
            tasks.append(humaneval())
        elif name == "infilling":
            tasks.append(held_out_lines(held_out()))
        elif name != BITS_PER_BYTE:
            raise MifyError(f"the task {name!r} is unknown", "use one of humaneval, infilling, bpb")
    return tasks
