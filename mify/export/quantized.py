"""Folders with quantized weights in the layout of `compressed-tensors`, which vLLM, SGLang and `transformers` load.

Linear layers are quantized by a scheme of `mify.quantization.scheme`; embedding, output matrix and norms stay in the
folder's dtype. Per-tensor FP8 is not written: TensorRT-LLM reads it as block scales.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.hf_config import write_config
from mify.export.hf_files import MAX_SHARD_BYTES, write_shards, write_text_files
from mify.export.model_card import CardFacts, model_card
from mify.export.safetensors_file import Entry, Made, SafetensorsFile
from mify.export.weights import Weights, as_weights, dtype_name, tensor_shapes
from mify.files import atomic_folder, write_json
from mify.quantization.scheme import LAYOUTS, Scheme

if TYPE_CHECKING:
    from mify.model import Model

GROUP_SIZES = (128, 64, 32)
Observe = Callable[[str, Tensor, dict[str, Tensor]], None]
SUFFIXES = ("weight", "weight_packed", "weight_scale", "weight_shape")


def scheme_of(kind: str, config: ModelConfig, group_size: int | None = None) -> Scheme:
    """The scheme `kind` for a model. A group is the most of 128, 64 and 32 columns that divides every input width."""
    if kind not in LAYOUTS:
        raise MifyError(f"unknown quantization {kind!r}", f"give {', '.join(LAYOUTS)}")
    widths = {shape[1] for name, shape in tensor_shapes(config).items() if is_linear(name)}
    if LAYOUTS[kind].packed and any(width % 8 for width in widths):
        raise MifyError(
            f"{kind} packs 8 columns, and the input widths are {sorted(widths)}", "quantize to fp8 or int8, or to GGUF"
        )
    if LAYOUTS[kind].strategy != "group":
        return Scheme(kind)
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    if group_size is None and fitting:
        return Scheme(kind, fitting[0])
    if group_size is None or group_size % 8 or any(width % group_size for width in widths):
        raise MifyError(
            f"no group size ({group_size or GROUP_SIZES}) divides the input widths {sorted(widths)}",
            "quantize to fp8 or int8, or to GGUF",
        )
    return Scheme(kind, group_size)


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a quantized linear layer."""
    return name.endswith("_proj.weight")


def export_quantized(
    model: Model | Weights,
    folder: str | os.PathLike[str],
    kind: str,
    *,
    group_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    facts: CardFacts | None = None,
    observe: Observe | None = None,
    gram_of: Callable[[str], Tensor | None] | None = None,
) -> Path:
    """Writes a quantized Hugging Face folder.

    Args:
        model: a model, or the weights of a file, which are then streamed a tensor at a time.
        kind: of `mify.quantization.scheme`. group_size: where it has groups; None chooses.
        dtype: of what is not quantized. facts: for the model card (README.md).
        gram_of: weight name → xᵀx of what goes into the layer, where rounding is to heed it (`Scheme.encode`).
        observe: called with the name, the weight and what stands for it, of every quantized layer.
    """
    weights = as_weights(model)
    weights.check_vocabulary()
    scheme = scheme_of(kind, weights.config, group_size)
    entries: dict[str, Entry] = {}
    for name, shape in tensor_shapes(weights.config).items():
        if is_linear(name):
            base = name.removesuffix("weight")
            entries |= {base + suffix: entry for suffix, entry in scheme.entries(shape).items()}
        else:
            entries[name] = Entry(dtype, shape)

    def encode(name: str, weight: Tensor) -> dict[str, Tensor]:
        parts = scheme.encode(weight, f"{weights.source}: {name}", gram_of(name) if gram_of else None)
        if observe is not None:
            observe(name, weight, parts)
        return parts

    folder = Path(folder)
    with atomic_folder(folder, replaces="config.json") as temporary:
        make = encoder(weights, entries, encode)
        if observe is None and gram_of is None:  # both want a weight whole
            make = _streaming(weights, entries, scheme, make)
        write_shards(temporary, entries, make, max_shard_bytes=max_shard_bytes)
        config = write_config(weights.config, weights.conventions, dtype_name(dtype))
        write_json(temporary / "config.json", {**config, "quantization_config": scheme.quantization_config()})
        card = model_card(weights, facts, dtype=dtype_name(dtype), kind=kind, group_size=scheme.group_size)
        write_text_files(temporary, weights, card)
    return folder


def encoder(
    weights: Weights, entries: dict[str, Entry], encode: Callable[[str, Tensor], dict[str, Tensor]]
) -> Callable[[str], Made]:
    """A `make` for `write_shards`: each weight is read and encoded once, its parts handed out as they are asked for.

    Args:
        encode: (name, weight) → the parts that stand for it, by suffix.
    """
    waiting: dict[str, Tensor] = {}

    def make(name: str) -> Made:
        if name in waiting:
            return waiting.pop(name)
        base = name.rpartition(".")[0]
        if not is_linear(f"{base}.weight"):
            return (block.to(entries[name].dtype) for block in weights.blocks(name))
        waiting.clear()
        parts = encode(f"{base}.weight", weights.tensor(f"{base}.weight"))
        waiting.update({f"{base}.{suffix}": part for suffix, part in parts.items()})
        return waiting.pop(name)

    return make


def _streaming(
    weights: Weights, entries: dict[str, Entry], scheme: Scheme, others: Callable[[str], Made]
) -> Callable[[str], Made]:
    """A `make` that encodes linear weights as their rows are read, and leaves the rest to `others`. Rows, or 128 of
    them, have scales of their own, so the parts are those of the whole weight.

    The quantized rows come before their scales and shape in a file, so these are known when they are asked for.
    """
    waiting: dict[str, Tensor] = {}

    def rows(name: str, base: str) -> Iterator[Tensor]:
        main = "weight_packed" if scheme.layout.packed else "weight"
        scales = []
        count = 0
        for block in weights.blocks(name):
            parts = scheme.encode(block, f"{weights.source}: {name}")
            scales.append(parts["weight_scale"])
            yield parts[main]
            count += block.shape[0]
        waiting[f"{base}.weight_scale"] = torch.cat(scales)
        waiting[f"{base}.weight_shape"] = torch.tensor([count, block.shape[1]], dtype=torch.int64)

    def make(name: str) -> Made:
        if name in waiting:
            return waiting.pop(name)
        base, _, suffix = name.rpartition(".")
        if suffix in ("weight", "weight_packed") and is_linear(f"{base}.weight"):
            waiting.clear()
            return rows(f"{base}.weight", base)
        return others(name)

    return make


class QuantizedTensors:
    """The linear weights of a folder that `export_quantized` (or llmcompressor) wrote, decoded on demand.

    Raises `MifyError` naming a quantization that is none of `mify.quantization.scheme`.
    """

    def __init__(self, settings: dict[str, Any], files: dict[str, SafetensorsFile], where: str) -> None:
        self._files = files
        self.scheme = Scheme.of_config(settings, where)

    def part_names(self, name: str) -> list[str]:
        """The stored tensors that stand for the weight `name`."""
        base = name.removesuffix("weight")
        return [base + suffix for suffix in SUFFIXES if base + suffix in self._files]

    def stored(self, name: str) -> dict[str, Tensor]:
        """What stands for the weight `name`, suffix → tensor."""
        base = name.removesuffix("weight")
        return {part.removeprefix(base): self._files[part].tensor(part) for part in self.part_names(name)}

    def tensor(self, name: str) -> Tensor:
        """The fp32 weight."""
        return self.scheme.decode(self.stored(name))
