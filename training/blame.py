"""Which documents stood in a batch whose loss or gradient was not finite: what a person looks at, and may skip."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .evaluate import evaluating
from .gradients import micro_batches

if TYPE_CHECKING:
    from mify.data.batch import PackedBatch

    from .run_state import Run


def suspects(run: Run, batch: PackedBatch) -> dict[str, Any]:
    """The rows of the global batch that are to blame and their documents, for a record; all ranks must call it.

    To blame are the micro-batches whose loss, computed again with the weights as they are, is not finite. Where all are
    finite (the gradient alone was not, or the loss a spike) nothing tells the rows apart, and all are named.

    Returns:
        {"rows": [first, last] of each run of rows, counted over all ranks, "documents": ids that `data.skip` takes};
        "documents" on rank 0 alone.
    """
    first = run.world.rank * batch.num_rows
    mine: list[tuple[int, int]] = []
    with evaluating(run.model), torch.no_grad():
        for part in micro_batches(run.config, batch):
            loss, _ = run.objective.loss(run.model, part.to(run.world.device))
            if not math.isfinite(float(loss)):
                mine.append((first, first + part.num_rows))
            first += part.num_rows
    everyone = [mine]
    if run.world.size > 1:
        everyone = [[] for _ in range(run.world.size)]
        dist.all_gather_object(everyone, mine)
    blamed = [span for spans in everyone for span in spans] or [(0, batch.num_rows * run.world.size)]
    found: dict[str, Any] = {"rows": [[low, high - 1] for low, high in blamed]}
    if run.world.is_main:
        rows = run.stream.documents_after(run.batches.before)
        chosen = (name for low, high in blamed for row in rows[low:high] for name in row)
        found["documents"] = list(dict.fromkeys(chosen))
    return found
