"""mify's batches in Megatron-LM (or NeMo): an external dataloader and a forward step.

With `--dataloader-type external` Megatron takes the iterators that the datasets provider returns as they are. Its own
sampler, its FIM and its packing are then out of the way:

    pretrain(datasets_provider, model_provider, ModelType.encoder_or_decoder, forward_step)

Every data-parallel rank opens the stream with its own rank; ranks of one tensor-, pipeline- or context-parallel group
open it alike. The stream's state goes into the checkpoint beside the iteration: `save_state` and `load_state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mify.data.batch import PackedBatch
from mify.data.fim import FimConfig
from mify.data.stream import Source, TokenStream


def open_stream(sources: dict[str, tuple[str, float]], *, sequence_length: int, global_batch_size: int, seed: int,
                data_parallel_rank: int = 0, data_parallel_size: int = 1) -> TokenStream:  # fmt: skip
    """The stream of a data-parallel rank. Args: sources: name -> (folder of shards, weight)."""
    return TokenStream(
        [Source(name, path, weight) for name, (path, weight) in sources.items()],
        context=sequence_length,
        rows_per_step=global_batch_size,
        seed=seed,
        fim=FimConfig(rate=0.25, spm_rate=0.5),
        rank=data_parallel_rank,
        world_size=data_parallel_size,
    )


def to_megatron(batch: PackedBatch) -> dict[str, Any]:
    """A batch under Megatron's names. T tokens lie in one row; `packed_seq_params` are PackedSeqParams' arguments.

    Megatron multiplies its loss by `loss_mask`, so ignored labels are any valid id there.
    """
    loss_mask = (batch.labels >= 0).float()
    return {
        "tokens": batch.tokens[None],
        "labels": batch.labels.clamp(min=0)[None],
        "loss_mask": loss_mask[None],
        "position_ids": batch.positions[None],
        "attention_mask": None,  # thd attention stays inside the segments by itself
        "packed_seq_params": {
            "qkv_format": "thd",
            "cu_seqlens_q": batch.cu_seqlens,
            "cu_seqlens_kv": batch.cu_seqlens,
            "max_seqlen_q": batch.max_seqlen,
            "max_seqlen_kv": batch.max_seqlen,
        },
    }


class ExternalLoader:
    """What the datasets provider returns for training: an iterator over micro-batches that can be saved.

    A global batch is cut into `micro_batches` parts, which Megatron asks for one after the other.
    """

    def __init__(self, stream: TokenStream, micro_batches: int = 1) -> None:
        self.stream, self.micro_batches = stream, micro_batches
        self._parts: Iterator[dict[str, Any]] = self._iterate()

    def _iterate(self) -> Iterator[dict[str, Any]]:
        for batch in self.stream:
            for part in batch.split(self.micro_batches):
                yield to_megatron(part)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._parts)

    def save_state(self) -> dict[str, Any]:
        """For the checkpoint; call it between steps, when all micro-batches of a step were taken."""
        return self.stream.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)
        self._parts = self._iterate()


def datasets_provider(stream: TokenStream, micro_batches: int) -> tuple[ExternalLoader, None, None]:
    """As `train_valid_test_datasets_provider`, with everything but the training set left to you."""
    return ExternalLoader(stream, micro_batches), None, None


def forward_step(
    data_iterator: Iterator[dict[str, Any]], model: Callable[..., Tensor]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Megatron's forward step: the per-token losses, and the function that reduces them.

    `model` is called as GPTModel: it returns the losses of (1, T) labels. In Megatron wrap `packed_seq_params` as
    `PackedSeqParams(**batch["packed_seq_params"])`.
    """
    batch = next(data_iterator)
    losses = model(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"],
        packed_seq_params=batch["packed_seq_params"],
    )  # fmt: skip

    def reduce(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # The sum and the count: Megatron divides by all ranks' tokens (--calculate-per-token-loss).
        total, count = (losses * batch["loss_mask"]).sum(), batch["loss_mask"].sum().to(torch.int64)
        return total, count, {"lm loss": torch.stack([total.detach(), count.float()])}

    return losses, reduce
