"""mify's batches in torchtitan: a dataloader as its TrainSpec takes one.

    train_spec.build_dataloader_fn = lambda dp_world_size, dp_rank, tokenizer, job_config: MifyDataLoader(...)

torchtitan calls `next` on it for `({"input": …}, labels)` once per micro-batch and lets DCP save its `state_dict`. Its
own loader weighs sources by example, has no FIM, and refuses another data-parallel degree on resume; this one mixes by
tokens and may resume on any degree, since the state is that of the global stream, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mify.data.fim import FimConfig
from mify.data.stream import Source, TokenStream


class MifyDataLoader:
    """Batches of (local_batch_size, seq_len) for one data-parallel rank.

    Args:
        sources: name -> (folder of shards, weight).
        local_batch_size: rows of a micro-batch; `global_batch_size` is that of a step, over all ranks.
    """

    def __init__(
        self,
        sources: dict[str, tuple[str, float]],
        *,
        dp_world_size: int,
        dp_rank: int,
        seq_len: int,
        local_batch_size: int,
        global_batch_size: int,
        seed: int = 0,
        fim: FimConfig | None = None,
    ) -> None:
        self.stream = TokenStream(
            [Source(name, path, weight) for name, (path, weight) in sources.items()],
            context=seq_len,
            rows_per_step=global_batch_size,
            seed=seed,
            fim=fim if fim is not None else FimConfig(),
            rank=dp_rank,
            world_size=dp_world_size,
        )
        self.micro_batches = global_batch_size // dp_world_size // local_batch_size

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """`positions` restart with every document: RoPE takes them, and a block-causal mask is made of them."""
        for batch in self.stream:
            for part in batch.split(self.micro_batches):
                rows = (part.num_rows, part.max_seqlen)
                inputs = {
                    "input": part.tokens.view(rows),
                    "positions": part.positions.view(rows),
                    "cu_seqlens": part.cu_seqlens,
                }
                yield inputs, part.labels.view(rows)

    def state_dict(self) -> dict[str, Any]:
        """The global stream's state, between steps."""
        return {"token_stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before the first batch; on any number of ranks. An empty one is that of a new run."""
        if state:
            self.stream.load_state_dict(state["token_stream"])
