"""A run over several benchmarks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.eval.report_page import write_page
from mify.eval.runner import Progress, RunOptions, run_task
from mify.eval.tasks import Task
from mify.files import write_json

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.eval.completers import Completer
    from mify.model import Model


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
    """Runs the tasks, then bits per byte; writes out/evaluation.json with all results and out/report.html.

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
    write_page(Path(out), results)
    return results
