"""The model that a run starts with: of a preset, or of imported weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mify.config import ModelConfig, model_config
from mify.errors import MifyError
from mify.lora import lora_layers, merge
from mify.model import Model
from mify.tokenizer import Tokenizer

from .config import TrainConfig
from .parallel import World, is_sharded, shards

if TYPE_CHECKING:
    from mify.lora import Adapter, LoraConfig


def model_shape(config: TrainConfig, tokenizer: Tokenizer | None = None) -> ModelConfig:
    """The shape that the run will have: that of the weights it starts from, or the preset with what is changed of it.

    Raises:
        MifyError: `init.weights` is no model; the tokenizer has more tokens than the embedding has rows.
    """
    if config.init.weights:
        from mify.loading import open_weights

        try:
            shape = open_weights(config.init.weights).config
        except MifyError as error:
            raise MifyError(
                f"init.weights: {error.problem}", f"{error.remedy}; or train the model to start from first"
            ) from None
    else:
        shape = _preset_shape(config, tokenizer)
    if config.data.context > shape.context:
        raise MifyError(
            f"data.context = {config.data.context} passes the {shape.context} tokens of {config.init.weights}",
            "lower --data.context",
        )
    if tokenizer is not None and tokenizer.vocab_size > shape.vocab_size:
        raise MifyError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model's embedding {shape.vocab_size} rows",
            "use the model's own tokenizer, or set --model.vocab_size",
        )
    return shape


def planned_shape(config: TrainConfig) -> ModelConfig:
    """As `model_shape`, for a plan: weights that are not there yet are taken to be of the preset."""
    if config.init.weights and not Path(config.init.weights).exists():
        return _preset_shape(config)
    return model_shape(config)


def _preset_shape(config: TrainConfig, tokenizer: Tokenizer | None = None) -> ModelConfig:
    changed = {key: value for key, value in vars(config.model).items() if key != "preset" and value is not None}
    if tokenizer is not None and "vocab_size" not in changed:
        changed["vocab_size"] = max(tokenizer.vocab_size, model_config(config.model.preset).vocab_size)
    return model_config(config.model.preset, **changed, context=config.data.context)


def make_model(
    config: TrainConfig, world: World, tokenizer: Tokenizer | None
) -> tuple[Model, dict[str, Tensor] | None]:
    """The model; where it is sharded, its skeleton on the meta device, and on rank 0 the weights to deal out."""
    shape = model_shape(config, tokenizer)

    def finished(model: Model) -> Model:
        if (lora := lora_config(config)) is not None:
            from mify.lora import Adapter, add_lora

            add_lora(model, lora, seed=config.seed)
            if config.lora.adapter:
                adapter = Adapter.load(config.lora.adapter)
                _check_scales(adapter, lora)
                if not model.head_weight.is_meta:
                    adapter.put_into(model)
        if config.parallel.fp8:
            from mify.fp8 import to_fp8

            to_fp8(model, config.fp8, world.device)
        return model

    whole: Model | None = None
    if world.is_main or not shards(config.parallel, world):
        if config.init.weights:
            from mify.loading import load

            whole = finished(load(config.init.weights).train())
        else:
            whole = finished(Model(shape, seed=config.seed))
    if not shards(config.parallel, world):
        assert whole is not None
        return whole, None
    with torch.device("meta"):
        skeleton = finished(Model(shape))
    return skeleton, whole.state_dict() if whole is not None else None


def _check_scales(adapter: Adapter, lora: LoraConfig) -> None:
    """A checkpoint keeps one scale for all layers, so a run that starts from an adapter must have the adapter's."""
    for name, (_, _, scale) in adapter.layers.items():
        if not math.isclose(scale, lora.scale):
            raise MifyError(
                f"the adapter multiplies its correction of {name} by {scale:g}, lora.rank and lora.alpha make it "
                f"{lora.scale:g}",
                "give --lora.rank, --lora.alpha and --lora.rank_stabilized as the adapter has them; one with scales "
                "of its own for some layers is merged into init.weights first",
            )


@torch.no_grad()
def model_to_sample(model: Model, config: TrainConfig) -> Model:
    """What the engine runs of a model in training, with the weights as they are now; all ranks must call it.

    The model itself, where it is whole on every rank and computes in the type of its weights. Through FSDP it is
    neither: then a copy, whole on every rank (requests end at different times, and a rank that is done would not be
    there to gather for the others), in the type of the products, adapters merged.
    """
    if not is_sharded(model):
        return model
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what a forward pass left gathered is in the type of the products already
    dtype = torch.bfloat16 if config.parallel.bf16 else torch.float32
    corrected, parameters = lora_layers(model), dict(model.named_parameters())

    def whole(name: str) -> Tensor:
        parameter = parameters[name]
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    with torch.device("meta"):
        copy = Model(model.config, impl=model.impl)
    weights: dict[str, Tensor] = {}
    for name in copy.state_dict():
        layer = name.removesuffix(".weight")
        weight = whole(name)
        if layer in corrected:
            weight = merge(weight, whole(f"{layer}.lora_A"), whole(f"{layer}.lora_B"), corrected[layer].scale)
        weights[name] = weight.detach().to(dtype, copy=True)
    copy.load_state_dict(weights, assign=True)
    copy.tokenizer = model.tokenizer
    return copy.eval().requires_grad_(False)


def lora_config(config: TrainConfig) -> LoraConfig | None:
    """The shape of the run's adapter; None where all weights are trained."""
    from mify.lora import LoraConfig

    section = config.lora
    if section.rank is None:
        return None
    return LoraConfig(section.rank, section.alpha, section.dropout, section.targets, section.rank_stabilized)
