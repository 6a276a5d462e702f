"""Rivals of `mify bench train`: transformers' Trainer on the same packed inputs, TRL's SFTTrainer on the same texts."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from importlib import util
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mify.data.batch import PackedBatch
    from mify.model import Model


def installed(*names: str) -> bool:
    """Whether all of these packages can be imported here."""
    return all(util.find_spec(name) is not None for name in names)


def llama(model: Model) -> Any:
    """A `LlamaForCausalLM` with the weights of `model` (sdpa attention: flash attention has no CPU kernel)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.ffn_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_query_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            rms_norm_eps=shape.rms_norm_eps,
            max_position_embeddings=shape.context,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=shape.tie_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    theirs.load_state_dict(model.state_dict(), strict=not shape.tie_embeddings)
    return theirs


def rows_of(batch: PackedBatch) -> list[dict[str, Any]]:
    """The batch's rows as transformers takes them: labels unshifted, documents told apart by their positions."""
    rows, context = batch.num_rows, batch.max_seqlen
    tokens, positions = batch.tokens.view(rows, context), batch.positions.view(rows, context)
    labels = batch.labels.view(rows, context).roll(1, dims=1)
    labels[:, 0] = -100
    return [{"input_ids": tokens[i], "position_ids": positions[i], "labels": labels[i]} for i in range(batch.num_rows)]


# What both of transformers' trainers are told; the optimizer is the one that mify's recipe has.
_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-3, "adam_beta2": 0.95, "weight_decay": 0.1, "max_grad_norm": 1.0, "seed": 0,
    "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "logging_steps": 1, "save_strategy": "no",
    "report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_num_workers": 0,
}  # fmt: skip


def _clock() -> Any:
    """A callback that keeps when each step ended, in CPU seconds (`ends`), and its loss (`losses`)."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.process_time())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Clock()


def trainer_step_seconds(
    model: Model, batches: list[PackedBatch], *, compiled: bool = False
) -> tuple[list[float], list[float]]:
    """Trains on each batch with transformers' `Trainer`. Returns CPU seconds from step end to step end, and losses."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    clock = _clock()
    data = [row for batch in batches for row in rows_of(batch)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batches[0].num_rows,
            max_steps=len(batches),
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            torch_compile=compiled,
            **_ARGUMENTS,
        )

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

        trainer = Trainer(
            model=llama(model), args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [after - before for before, after in pairwise(clock.ends)], clock.losses


@dataclass(frozen=True)
class TrlSteps:
    """What TRL did: tokens a second of CPU time in each step but the first, its first batch, and the loss of that."""

    tokens_per_second: list[float]
    first_batch: dict[str, Tensor]
    first_loss: float


def trl_steps(
    model: Model, conversations: list[tuple[list[int], list[bool]]], *, rows: int, context: int, steps: int
) -> TrlSteps:
    """Trains with TRL's `SFTTrainer`, which packs by itself (best-fit, its default).

    Args:
        conversations: ids and, for each, whether it carries loss.
    """
    import datasets
    from tokenizers import Tokenizer as Plain
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    counts: list[int] = []
    batches: list[dict[str, Any]] = []

    clock = _clock()
    labels = [
        [token if own else -100 for token, own in zip(ids, loss, strict=True)] for ids, loss in conversations
    ]  # fmt: skip
    data = datasets.Dataset.from_dict({"input_ids": [ids for ids, _ in conversations], "labels": labels})
    # Ids are given, so of a tokenizer only the padding is used.
    named = PreTrainedTokenizerFast(tokenizer_object=Plain(WordLevel({"x": 0}, "x")), pad_token="x", eos_token="x")
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_steps=steps,
            max_length=context,
            packing=True,
            gradient_checkpointing=False,
            bf16=False,
            **_ARGUMENTS,
        )
        trainer = SFTTrainer(
            model=llama(model), args=arguments, train_dataset=data, processing_class=named, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = collate(examples)
            counts.append(int(sum(sum(example["seq_lengths"]) for example in examples)))
            if not batches:
                batches.append({key: value.clone() for key, value in batch.items() if hasattr(value, "clone")})
            return batch

        trainer.data_collator = counted
        trainer.train()
    speeds = [
        count / (after - before) for count, (before, after) in zip(counts[1:], pairwise(clock.ends), strict=False)
    ]
    return TrlSteps(speeds, batches[0], clock.losses[0])
