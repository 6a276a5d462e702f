"""Weights & Biases, for those who have it: the extra `wandb`."""

from __future__ import annotations

from importlib import import_module, util
from typing import Any

from mify.errors import MifyError

from .config import TrainConfig
from .tensorboard import scalars


class WandbWriter:
    """Sends the numbers of metrics records to the project `logging.wandb`; a resumed run goes on with its own id."""

    def __init__(self, config: TrainConfig) -> None:
        if util.find_spec("wandb") is None:
            raise MifyError("logging.wandb is set, but wandb is not installed", "pip install wandb, or drop the key")
        wandb = import_module("wandb")
        identity = f"{config.name}-{config.hash[:12]}"
        self._run = wandb.init(
            project=config.logging.wandb, name=config.name, id=identity, resume="allow", config=config.to_dict()
        )

    def write(self, record: dict[str, Any]) -> None:
        """One record, at its step."""
        self._run.log(dict(scalars(record)), step=record["step"])

    def close(self) -> None:
        """Ends the upload."""
        self._run.finish()
