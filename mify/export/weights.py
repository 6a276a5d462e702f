"""Weights behind one door: a model in memory or a file on disk, read a tensor at a time.

Importers are `Weights`; exporters take `Weights`. So every format goes to every other without a model in memory, and
what a conversion needs beside its largest tensor is bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.conventions import Conventions

if TYPE_CHECKING:
    from mify.model import Model
    from mify.quantization.scheme import Scheme
    from mify.tokenizer import Tokenizer


class Weights(ABC):
    """A Llama-shaped model's tensors under Hugging Face's names, and what belongs to them.

    Attributes:
        config: the shape.
        tokenizer: None where the source has none.
        conventions: token ids and chat template.
        source: what to call it in messages (a path, or the model's name).
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    conventions: Conventions
    source: str

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """The tensor of one of `tensor_shapes(config)`, on the CPU, in the dtype it is stored in."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The dtype `tensor(name)` will have, without reading it."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The rows of `tensor(name)` in blocks, of which each may be overwritten when the next is asked for."""
        yield self.tensor(name)

    @property
    def scheme(self) -> Scheme | None:
        """How linear weights are stored, where they are quantized."""
        return None

    def stored(self, name: str) -> dict[str, Tensor]:
        """What stands for a quantized linear weight, suffix → tensor, where there is a scheme."""
        raise KeyError(name)

    def check_vocabulary(self) -> None:
        """Raises `MifyError` where the tokenizer has ids beyond the embedding's rows."""
        if self.tokenizer is not None and self.tokenizer.vocab_size > self.config.vocab_size:
            raise MifyError(
                f"{self.source}: the tokenizer has {self.tokenizer.vocab_size} tokens, "
                f"the model {self.config.vocab_size} embedding rows",
                "use the tokenizer that the model was trained with",
            )


class ModelWeights(Weights):
    """The weights of a model in memory."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.tokenizer = model.tokenizer
        self.source = model.config.name
        self.conventions = conventions_of(model)
        self._state = model.state_dict()
        self.check_vocabulary()

    def tensor(self, name: str) -> Tensor:
        return self._state[name].detach().cpu()

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype


def as_weights(model: Model | Weights) -> Weights:
    """`model` itself where it is `Weights` already."""
    return model if isinstance(model, Weights) else ModelWeights(model)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a model, in the order of the layers. A tied model has no `lm_head.weight`."""
    d, f = config.hidden_size, config.ffn_size
    q, kv = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for layer in range(config.num_layers):
        of_layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (q, d),
            "self_attn.k_proj.weight": (kv, d),
            "self_attn.v_proj.weight": (kv, d),
            "self_attn.o_proj.weight": (d, q),
            "post_attention_layernorm.weight": (d,),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    shapes["model.norm.weight"] = (d,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def to_model(weights: Weights, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """The model of `weights`, its tensors read one by one, cast to `dtype` and put on `device`."""
    from mify.model import Model

    weights.check_vocabulary()
    with torch.device("meta"):
        model = Model(weights.config)
    state = {
        name: weights.tensor(name).to(device=device, dtype=dtype, copy=True) for name in tensor_shapes(weights.config)
    }
    model.load_state_dict(state, assign=True)
    model.tokenizer = weights.tokenizer
    remember_conventions(model, weights.conventions)
    return model.eval()


def conventions_of(model: Model) -> Conventions:
    """The conventions that `model` was loaded with, else those that follow from its vocabulary."""
    known = model.__dict__.get("conventions")
    return known if isinstance(known, Conventions) else Conventions.of(model.tokenizer)


def remember_conventions(model: Model, conventions: Conventions) -> None:
    """Keeps on a loaded model what its file said, so that an export says it again."""
    model.__dict__["conventions"] = conventions


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")
