"""LoRA: frozen linear layers with a trained correction of low rank, in `peft`'s adapter format in and out.

    y = x Wᵀ + scale · (x Aᵀ) Bᵀ,  A (r, in), B (out, r),  scale = alpha / r, or alpha / √r where rank-stabilized

Sources: Hu et al., arXiv 2106.09685; rank-stabilized: Kalajdzievski, arXiv 2312.03732. An adapter is a folder of
`adapter_config.json` and `adapter_model.safetensors`, as `peft` writes and reads it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mify.errors import MifyError
from mify.export.weights import Weights, tensor_shapes
from mify.files import atomic_folder, read_json
from mify.model import Model

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FORMAT, VERSION = "mify-lora", 1
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft's names
# Options of peft's that change what is computed, and the values at which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []), "lora_bias": (False, None), "layer_replication": (None, []),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "use_bdlora": (None, False),
    "arrow_config": (None,), "use_qalora": (False, None), "alora_invocation_tokens": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter.

    Args:
        rank, alpha: see the formula. dropout: of the correction's input, in training.
        targets: names of the linear layers that have one. rank_stabilized: the scale's second form.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        unknown = next((name for name in self.targets if name not in TARGETS), None)
        if unknown is not None or not self.targets:
            raise MifyError(f"lora.targets holds {unknown!r}", f"name some of {', '.join(TARGETS)}")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise MifyError(
                f"lora.rank = {self.rank}, lora.dropout = {self.dropout}", "a rank from 1, a dropout below 1"
            )

    @property
    def scale(self) -> float:
        """What the correction is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint of the trainer holds it (`lora.json`)."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @staticmethod
    def from_dict(values: Any) -> LoraConfig:
        """Raises MifyError: another format or version."""
        found = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
        if found != (FORMAT, VERSION):
            raise MifyError(f"{found[0]} of version {found[1]} is no {FORMAT} {VERSION}", "use the mify that wrote it")
        rest = {key: value for key, value in values.items() if key not in ("format", "version", "targets")}
        return LoraConfig(**rest, targets=tuple(values["targets"]))


class LoraLinear(nn.Linear):
    """A linear layer with a correction. Its weight keeps its name and is frozen; `lora_A` and `lora_B` are trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        self.weight.requires_grad_(False)
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(base.weight.new_zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x (T, in) → (T, out)."""
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(inside, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """(out, in): the weight with the correction in it."""
        return merge(self.weight, self.lora_A, self.lora_B, self.scale)


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight + scale · B A, computed in fp32 at least, in the dtype of `weight`."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + scale * (b.to(wide) @ a.to(wide))).to(weight.dtype)


def add_lora(model: Model, config: LoraConfig, *, seed: int = 0) -> None:
    """Gives the layers that `config` names a correction of zero, and freezes everything else, in place.

    B is zero; A is uniform in ±1/√in (`peft`'s start), a function of `seed`, the layer's name and its shape.
    """
    model.requires_grad_(False)
    for name, parent, child in _linears(model, config.targets):
        base = getattr(parent, child)
        if type(base) is not nn.Linear:
            raise MifyError(f"{name} is a {type(base).__name__}, which takes no LoRA", "train in bf16 or fp32")
        layer = LoraLinear(base, config.rank, config.scale, config.dropout)
        if not layer.weight.is_meta:
            named = sha256(f"{seed}/{name}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(named, "little"))
            bound = 1 / math.sqrt(base.in_features)
            start = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
            layer.lora_A.data.copy_(start)
        setattr(parent, child, layer)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The corrected layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merge_lora(model: Model) -> None:
    """Puts the corrections into the weights and the plain layers back, in place; all parameters train again."""
    for name, layer in lora_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.merged())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    model.requires_grad_(True)


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: for each layer's name A, B and the scale."""

    config: LoraConfig
    base: str = ""
    layers: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)

    @staticmethod
    def of(model: Model, config: LoraConfig, base: str = "") -> Adapter:
        """The adapter that `add_lora` put into `model`."""
        layers = {
            name: (layer.lora_A.detach().cpu(), layer.lora_B.detach().cpu(), layer.scale)
            for name, layer in lora_layers(model).items()
        }
        return Adapter(config, base, layers)

    def put_into(self, model: Model) -> None:
        """Sets the corrections of a model that `add_lora` has prepared with this adapter's configuration."""
        layers = lora_layers(model)
        if layers.keys() != self.layers.keys():
            odd = sorted(layers.keys() ^ self.layers.keys())[0]
            raise MifyError(f"the adapter and the model differ in {odd}", "give lora.targets as the adapter has them")
        for name, (a, b, scale) in self.layers.items():
            layer = layers[name]
            if layer.lora_A.shape != a.shape or layer.lora_B.shape != b.shape:
                raise MifyError(
                    f"the adapter's {name} has A {tuple(a.shape)}, the model's {tuple(layer.lora_A.shape)}",
                    "give the base model and the rank that the adapter was trained with",
                )
            layer.lora_A.data.copy_(a)
            layer.lora_B.data.copy_(b)
            layer.scale = scale

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the folder, whole or not at all. `peft.PeftModel.from_pretrained(base, folder)` loads it."""
        from safetensors.torch import save_file

        document = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base, "r": self.config.rank,
            "lora_alpha": self.config.alpha, "lora_dropout": self.config.dropout, "bias": "none",
            "target_modules": list(self.config.targets), "use_rslora": self.config.rank_stabilized, "use_dora": False,
            "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
        }  # fmt: skip
        tensors = {}
        for name, (a, b, _) in self.layers.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.contiguous()
        with atomic_folder(folder, replaces=CONFIG) as temporary:
            text = json.dumps(document, indent=2, sort_keys=True) + "\n"
            (temporary / CONFIG).write_text(text, encoding="utf-8")
            save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Adapter:
        """Reads what `peft` or `save` wrote.

        Raises:
            MifyError: no adapter there, another kind than LoRA on linear layers, an option that would change what is
                computed and is not known here.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        document = read_json(folder / CONFIG)
        if not isinstance(document, dict):
            raise MifyError(f"{folder / CONFIG} is no adapter's configuration", "give a folder that peft wrote")
        for key, plain in _PLAIN.items():
            if key in document and document[key] not in plain:
                raise MifyError(
                    f"{folder}: {key} = {document[key]!r} is not supported",
                    f"merge it with peft, or train with {key} = {plain[0]!r}",
                )
        if not (folder / TENSORS).is_file():
            raise MifyError(f"{folder / TENSORS} does not exist", "save the adapter as safetensors")
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / TENSORS).items():
            matched = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
            if matched is None or matched[1].rpartition(".")[2] not in TARGETS:
                raise MifyError(
                    f"{folder}: the tensor {key} is no LoRA of a linear layer", "merge the adapter with peft"
                )
            found.setdefault(matched[1], {})[matched[2]] = tensor
        half = next((name for name, pair in found.items() if len(pair) != 2), None)
        if half is not None or not found:
            raise MifyError(f"{folder}: {half or 'every layer'} lacks A or B", "the file is damaged: save it again")
        stable = bool(document.get("use_rslora"))
        alphas: Mapping[str, float] = document.get("alpha_pattern") or {}
        layers = {}
        for name, pair in found.items():
            rank = pair["A"].shape[0]
            alpha = next(
                (a for key, a in alphas.items() if re.match(rf"(.*\.)?({key})$", name)), document["lora_alpha"]
            )
            layers[name] = pair["A"], pair["B"], alpha / (math.sqrt(rank) if stable else rank)
        present = {name.rpartition(".")[2] for name in found}
        targets = tuple(name for name in TARGETS if name in present)
        config = LoraConfig(
            int(document["r"]),
            float(document["lora_alpha"]),
            float(document.get("lora_dropout") or 0.0),
            targets,
            stable,
        )
        return Adapter(config, str(document.get("base_model_name_or_path") or ""), layers)


class AdaptedWeights(Weights):
    """Full weights: a base model's with an adapter's corrections in them, tensor by tensor."""

    def __init__(self, base: Weights, adapter: Adapter, source: str = "") -> None:
        self.config, self.tokenizer, self.conventions = base.config, base.tokenizer, base.conventions
        self.source = source or base.source
        self._base, self._layers = base, adapter.layers
        shapes = tensor_shapes(base.config)
        for name, (a, b, _) in adapter.layers.items():
            shape = shapes.get(f"{name}.weight")
            if shape != (b.shape[0], a.shape[1]):
                raise MifyError(
                    f"{self.source}: the adapter's {name} is ({b.shape[0]}, {a.shape[1]}), the base's {shape}",
                    f"give the base model that it was trained on{f': {adapter.base}' if adapter.base else ''}",
                )

    def tensor(self, name: str) -> Tensor:
        correction = self._layers.get(name.removesuffix(".weight"))
        weight = self._base.tensor(name)
        return weight if correction is None else merge(weight, *correction)

    def dtype(self, name: str) -> torch.dtype:
        return self._base.dtype(name)


def _linears(model: Model, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, its parent, its name there) of every linear layer that is named."""
    for layer, block in enumerate(model.model.layers):
        for part in ("self_attn", "mlp"):
            parent = block.get_submodule(part)
            for child, _ in parent.named_children():
                if child in targets:
                    yield f"model.layers.{layer}.{part}.{child}", parent, child
