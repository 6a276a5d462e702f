"""What activation checkpointing computes twice, counted op by op."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import ToyStream, toy_config

from mify.config import ModelConfig
from mify.model import Model
from mify.training.config import ParallelSection
from mify.training.parallel import World, distribute

ALONE = World(0, 1, 1, torch.device("cpu"))
LAYERS = 2


class Counting(TorchDispatchMode):
    """Counts the ops that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "attention", "swiglu"), [("none", 1, 1), ("selective", 1, 2), ("full", 2, 2)])
def test_selective_recomputation_keeps_products_and_attention(
    tmp_path: Path, kind: Any, attention: int, swiglu: int
) -> None:
    model = Model(ModelConfig("toy", LAYERS, 32, 2, 1, 16, 48, 64, 32, tie_embeddings=True), seed=1)
    model = distribute(model, ParallelSection(activation_checkpointing=kind), ALONE)
    batch = ToyStream(toy_config(tmp_path), ALONE).batch(0)
    with Counting() as counting:
        loss, _ = model.loss(batch)
        loss.backward()
    assert counting.counts["mify::gqa_attention"] == LAYERS * attention
    assert counting.counts["mify::swiglu"] == LAYERS * swiglu
    # Seven products a layer forwards, fourteen backwards; full recomputation repeats those whose result is needed.
    products = counting.counts["aten::mm"]
    if kind == "selective":
        assert products == 21 * LAYERS
    elif kind == "full":
        assert products > 21 * LAYERS
