"""What a run minimises: the face that the trainer knows of an objective, and language modelling, the plainest one."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from mify.data.batch import PackedBatch
from mify.model import Model

from .config import TrainConfig
from .parallel import World
from .prefetch import Stream


class Objective(Protocol):
    """A loss over batches, and what is logged beside it."""

    names: tuple[str, ...]
    """What `loss` sums besides the loss; the record of a step holds each as a mean over the batch's units."""

    def loss(self, model: Model, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The summed loss of a micro-batch (scalar, differentiable), and the sums of `names` ((n,), detached)."""
        ...

    def facts(self) -> dict[str, Any]:
        """What else the record of the step that is over should hold, equal on all ranks; under `time`, of the clock."""
        ...

    def evaluate(self) -> dict[str, Any]:
        """Scores of the model as it is, besides held-out bits per byte; all ranks call it."""
        ...

    def close(self) -> None:
        """Ends what the objective has started."""
        ...


class LanguageModelling:
    """Cross-entropy of every labelled token: continual pretraining and supervised fine-tuning."""

    names: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig) -> None:
        self._z_loss = config.optimizer.z_loss

    def loss(self, model: Model, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        loss, _ = model.loss(batch, z_loss=self._z_loss)
        return loss, loss.new_zeros(0)

    def facts(self) -> dict[str, Any]:
        return {}

    def evaluate(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def open_objective(config: TrainConfig, world: World, model: Model, stream: Stream) -> Objective:
    """The objective that `config.objective` names. `model` holds the weights that the run starts from, not resumed yet.

    Raises:
        MifyError: see the objectives.
    """
    if config.objective == "dpo":
        from .objectives.dpo import Dpo, PreferenceStream

        assert isinstance(stream, PreferenceStream)
        return Dpo(config, world, model, stream)
    if config.objective == "grpo":
        from .objectives.grpo import Grpo
        from .objectives.rollout_stream import RolloutStream

        assert isinstance(stream, RolloutStream)
        return Grpo(config, world, model, stream)
    return LanguageModelling(config)
