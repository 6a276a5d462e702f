"""litgpt's `pretrain` on the same packed inputs: a rival of `mify bench train`.

litgpt knows no documents within a row: it attends over all of it and counts every token but the last as a target. So
what it trains is not what we train, at the same tokens and the same matrices; that both hold one model is checked on
its own terms (`loss_on_its_terms`). AdamW is fused for it, too, which its own default does on a GPU alone.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from mify.data.batch import IGNORE_LABEL, PackedBatch

if TYPE_CHECKING:
    from mify.model import Model

PACKAGES = ("litgpt", "lightning", "torchmetrics", "jsonargparse")


class FusedAdamW(torch.optim.AdamW):
    """AdamW in one pass over all parameters; litgpt passes `fused` only to what has such an argument."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas, fused=True)


def step_seconds(
    model: Model, batches: list[PackedBatch], *, compiled: bool = False
) -> tuple[list[float], list[float]]:
    """Trains `model`'s weights on each batch with `litgpt.pretrain`.

    Returns:
        CPU seconds from step end to step end, and the loss of each step.
    """
    import lightning
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs

    ends: list[float] = []
    losses: list[float] = []

    def log(fabric: Any, metrics: dict[str, Any], step: int | None = None) -> None:
        ends.append(time.process_time())
        losses.append(float(metrics["loss"]))

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it tells its seed each time
    rows, context = batches[0].num_rows, batches[0].max_seqlen
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        torch.save(weights(model), Path(folder) / "lit_model.pth")
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(mock.patch.object(lightning.Fabric, "log_dict", log))
        stack.enter_context(mock.patch.object(pretrain, "save_checkpoint"))
        if not compiled:
            stack.enter_context(mock.patch.object(torch, "compile", lambda module: module))
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="32-true")
        fabric.launch()
        pretrain.main(
            fabric=fabric,
            devices=1,
            seed=0,
            initial_checkpoint_dir=Path(folder),
            resume=False,
            config=config(model),
            data=_rows(batches),
            out_dir=Path(folder) / "out",
            tokenizer_dir=None,
            tokenizer=None,
            train=TrainArgs(
                save_interval=None, log_interval=1, global_batch_size=rows, micro_batch_size=rows, lr_warmup_steps=0,
                max_tokens=len(batches) * rows * context, max_norm=1.0, min_lr=1e-3,
                tie_embeddings=model.config.tie_embeddings,
            ),
            eval=EvalArgs(interval=10**9, initial_validation=False, final_validation=False),
            optimizer={
                "class_path": f"{__name__}.FusedAdamW",
                "init_args": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)},
            },
        )  # fmt: skip
    return [after - before for before, after in pairwise(ends)], losses


def config(model: Model) -> Any:
    """litgpt's `Config` of the shape of `model`."""
    from litgpt.config import Config

    shape = model.config
    return Config(
        name="mify",
        block_size=shape.context,
        n_layer=shape.num_layers,
        n_embd=shape.hidden_size,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        norm_class_name="RMSNorm",
        norm_eps=shape.rms_norm_eps,
        parallel_residual=False,
        n_head=shape.num_query_heads,
        head_size=shape.head_dim,
        n_query_groups=shape.num_kv_heads,
        rope_base=int(shape.rope_theta),
        rotary_percentage=1.0,
        intermediate_size=shape.ffn_size,
        bias=False,
        mlp_class_name="LLaMAMLP",
    )


def weights(model: Model) -> dict[str, Tensor]:
    """The weights of `model` under litgpt's names; q, k and v lie in one matrix there."""
    ours = model.state_dict()
    theirs = {
        "transformer.wte.weight": ours["model.embed_tokens.weight"],
        "transformer.ln_f.weight": ours["model.norm.weight"],
        "lm_head.weight": model.head_weight.detach(),
    }
    names = {
        "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "self_attn.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    }  # fmt: skip
    for layer in range(model.config.num_layers):
        for name, other in names.items():
            theirs[f"transformer.h.{layer}.{other}.weight"] = ours[f"model.layers.{layer}.{name}.weight"]
        qkv = [ours[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkv"]
        theirs[f"transformer.h.{layer}.attn.qkv.weight"] = torch.cat(qkv)
    return theirs


@torch.no_grad()
def loss_on_its_terms(model: Model, batch: PackedBatch) -> float:
    """Our model's mean loss over whole rows as one document each, every token a target: what litgpt computes."""
    rows, context = batch.num_rows, batch.max_seqlen
    tokens = batch.tokens.view(rows, context)
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = tokens[:, -1]  # as `_rows` has it
    whole = PackedBatch(
        batch.tokens,
        labels.reshape(-1),
        torch.arange(context).repeat(rows),
        torch.arange(0, rows * context + 1, context, dtype=torch.int32),
        context,
    )
    loss, count = model.loss(whole)
    assert IGNORE_LABEL not in labels
    return float(loss / count)


def _rows(batches: list[PackedBatch]) -> Any:
    """A litgpt `DataModule` of the batches' rows: context + 1 tokens, since it shifts them itself."""
    from litgpt.data import DataModule
    from torch.utils.data import DataLoader

    rows, context = batches[0].num_rows, batches[0].max_seqlen
    tokens = torch.cat([batch.tokens.view(rows, context) for batch in batches])
    data = list(torch.cat([tokens, tokens[:, -1:]], dim=1))

    class Rows(DataModule):  # type: ignore[misc]
        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return DataLoader(data, batch_size=self.batch_size)  # type: ignore[arg-type]

        def val_dataloader(self) -> Any:
            return DataLoader(data[: self.batch_size], batch_size=self.batch_size)  # type: ignore[arg-type]

    return Rows()
