"""mify's batches in `transformers.Trainer`: rows whose positions restart with every document.

    stream = TokenStream([Source("code", "shards/code", 1.0)], context=4096, rows_per_step=64, seed=1, fim=FimConfig())
    rows = StreamRows(stream)
    trainer = Trainer(model, TrainingArguments(..., per_device_train_batch_size=8, gradient_accumulation_steps=8,
                                               max_steps=1000, ignore_data_skip=True), train_dataset=rows,
                      callbacks=[SaveStream(rows)])
    rows.resume("run/checkpoint-500")          # only when there is one
    trainer.train(resume_from_checkpoint="run/checkpoint-500")

`rows_per_step` is per_device_train_batch_size x gradient_accumulation_steps x processes; open the same stream, with its
default rank, in every process: `accelerate` deals the rows out. Without an attention mask, transformers finds the
documents in a row by their positions, in SDPA and in flash-attention alike. `ignore_data_skip` keeps the Trainer from
drawing and dropping what was trained before; the stream's own state is exact and takes no time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from mify.data.batch import IGNORE_LABEL
from mify.data.stream import TokenStream

STATE = "token_stream.json"


class StreamRows(IterableDataset[dict[str, Tensor]]):
    """A stream's rows, one item each: input_ids, labels and position_ids of (context,)."""

    def __init__(self, stream: TokenStream, remembered: int = 16) -> None:
        """Args: remembered: states kept of the last steps; loaders draw ahead of what is trained."""
        self.stream, self.remembered = stream, remembered
        self.states: OrderedDict[int, dict[str, Any]] = OrderedDict({stream.step: stream.state_dict()})

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.stream:
            self.states[self.stream.step] = self.stream.state_dict()
            while len(self.states) > self.remembered:
                self.states.popitem(last=False)
            rows = (batch.num_rows, batch.max_seqlen)
            # transformers shifts labels itself, so they are shifted back: labels[t] is the token at t or -100.
            labels = batch.labels.view(rows).roll(1, dims=1)
            labels[:, 0] = IGNORE_LABEL
            tokens, positions = batch.tokens.view(rows), batch.positions.view(rows)
            for row in range(batch.num_rows):
                yield {"input_ids": tokens[row], "labels": labels[row], "position_ids": positions[row]}

    def resume(self, checkpoint: str | Path) -> None:
        """Continues behind the last step of a checkpoint that `SaveStream` wrote into."""
        self.stream.load_state_dict(json.loads((Path(checkpoint) / STATE).read_text()))
        self.states = OrderedDict({self.stream.step: self.stream.state_dict()})


class SaveStream(TrainerCallback):
    """Writes the stream's state after the last trained step into every checkpoint."""

    def __init__(self, rows: StreamRows) -> None:
        self.rows = rows

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        temporary = folder / f".{STATE}"
        temporary.write_text(json.dumps(self.rows.states[state.global_step]))
        temporary.replace(folder / STATE)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows to a batch; no attention mask, so that documents are found by their positions."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
