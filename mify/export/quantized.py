"""FP8, INT8 and INT4 folders in the layout of `compressed-tensors`, which vLLM, SGLang and `transformers` load.

Linear layers are quantized; embedding, output matrix and norms stay in the folder's dtype. For a weight W (out, in):

    fp8    W8A8: `weight` float8_e4m3fn, `weight_scale` (out, 1) = amax/448 a row; activations per token at run time
    int8   W8A8: `weight` int8, `weight_scale` (out, 1) = amax/127 a row; activations per token at run time
    int4   W4A16: `weight_packed` int32 (out, in/8), eight values a word, the first in the lowest bits, each + 8;
           `weight_scale` (out, in/group); `weight_shape` int64 (2,)

Per-tensor FP8 is not written: TensorRT-LLM reads it as block scales.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.hf_config import write_config
from mify.export.hf_files import MAX_SHARD_BYTES, write_shards, write_text_files
from mify.export.model_card import CardFacts, model_card
from mify.export.safetensors_file import Entry, SafetensorsFile
from mify.export.weights import Weights, as_weights, dtype_name, tensor_shapes
from mify.files import atomic_folder, write_json

if TYPE_CHECKING:
    from mify.model import Model

FP8_MAX = 448.0
LAYOUT_VERSION = "0.20.0"
"""The version of compressed-tensors whose layout this is."""
GROUP_SIZES = (128, 64, 32)
_FORMATS = {"fp8": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}
_SHRINKS = tuple(1.0 - 0.05 * step for step in range(8))


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear weights are stored.

    Args:
        kind: "fp8", "int8" or "int4".
        group_size: columns that share a scale (int4).
        scale_dtype: of `weight_scale`.
    """

    kind: str
    group_size: int = 0
    scale_dtype: torch.dtype = torch.bfloat16

    def entries(self, shape: tuple[int, ...]) -> dict[str, Entry]:
        """What stands for a weight of `shape`: suffix of the name → dtype and shape."""
        out, columns = shape
        if self.kind == "int4":
            return {
                "weight_packed": Entry(torch.int32, (out, columns // 8)),
                "weight_scale": Entry(self.scale_dtype, (out, columns // self.group_size)),
                "weight_shape": Entry(torch.int64, (2,)),
            }
        stored = torch.float8_e4m3fn if self.kind == "fp8" else torch.int8
        return {"weight": Entry(stored, (out, columns)), "weight_scale": Entry(self.scale_dtype, (out, 1))}

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of `entries` for a weight (out, in)."""
        values = weight.float()
        if self.kind == "int4":
            scale = _int4_scale(values, self.group_size, self.scale_dtype)
            levels = _to_levels(values, scale, self.group_size)
            shape = torch.tensor(weight.shape, dtype=torch.int64)
            return {"weight_packed": pack_int4(levels), "weight_scale": scale, "weight_shape": shape}
        amax = values.abs().amax(dim=1, keepdim=True)
        limit = FP8_MAX if self.kind == "fp8" else 127.0
        scale = torch.where(amax > 0, amax / limit, 1.0).to(self.scale_dtype)
        # The rounded scale is the one engines multiply by, so it is the one to divide by.
        scaled = values / scale.float()
        if self.kind == "fp8":
            return {"weight": scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), "weight_scale": scale}
        return {"weight": scaled.round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}

    def decode(self, stored: dict[str, Tensor]) -> Tensor:
        """The fp32 weight (out, in) that engines compute with."""
        scale = stored["weight_scale"].float()
        if self.kind != "int4":
            return stored["weight"].float() * scale
        levels = unpack_int4(stored["weight_packed"]).float()
        return (levels.view(*scale.shape, -1) * scale[..., None]).view(levels.shape)

    def round(self, weight: Tensor) -> Tensor:
        """A weight (out, in) rounded to INT4 and back, with scales of amax/7.5: quick, for searching."""
        groups = weight.view(weight.shape[0], -1, self.group_size)
        scale = (groups.abs().amax(-1, keepdim=True) / 7.5).clamp(min=1e-12)
        return ((groups / scale).round().clamp(-8, 7) * scale).view(weight.shape)

    def quantization_config(self) -> dict[str, Any]:
        """The `quantization_config` entry of config.json."""
        layout = _FORMATS[self.kind]
        common: dict[str, Any] = {
            "group_size": None,
            "num_bits": 4 if self.kind == "int4" else 8,
            "symmetric": True,
            "type": "float" if self.kind == "fp8" else "int",
        }
        weights = {**common, "dynamic": False, "observer": "memoryless_minmax", "strategy": "channel"}
        activations: dict[str, Any] | None = {**common, "dynamic": True, "strategy": "token"}
        if self.kind == "int4":
            weights |= {"group_size": self.group_size, "observer": "memoryless_mse", "strategy": "group"}
            activations = None
        group = {
            "format": layout,
            "input_activations": activations,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": weights,
        }
        return {
            "config_groups": {"group_0": group},
            "format": layout,
            "global_compression_ratio": None,
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": LAYOUT_VERSION,
        }


def scheme_of(kind: str, config: ModelConfig, group_size: int | None = None) -> Scheme:
    """The scheme `kind` for a model. INT4's group is the largest of 128, 64 and 32 that divides every input width."""
    if kind not in _FORMATS:
        raise MifyError(f"unknown quantization {kind!r}", f"give {', '.join(_FORMATS)}")
    if kind != "int4":
        return Scheme(kind)
    widths = {shape[1] for name, shape in tensor_shapes(config).items() if is_linear(name)}
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    if group_size is None and fitting:
        return Scheme(kind, fitting[0])
    if group_size is None or group_size % 8 or any(width % group_size for width in widths):
        raise MifyError(
            f"no INT4 group size ({group_size or GROUP_SIZES}) divides the input widths {sorted(widths)}",
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
) -> Path:
    """Writes a quantized Hugging Face folder.

    Args:
        model: a model, or the weights of a file, which are then streamed a tensor at a time.
        kind: "fp8", "int8" or "int4". group_size: of int4; None chooses.
        dtype: of what is not quantized. facts: for the model card (README.md).
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
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        make = encoder(weights, entries, lambda _, weight: scheme.encode(weight))
        write_shards(temporary, entries, make, max_shard_bytes=max_shard_bytes)
        config = write_config(weights.config, weights.conventions, dtype_name(dtype))
        write_json(temporary / "config.json", {**config, "quantization_config": scheme.quantization_config()})
        card = model_card(weights, facts, dtype=dtype_name(dtype), kind=kind, group_size=scheme.group_size)
        write_text_files(temporary, weights, card)
    return folder


def encoder(
    weights: Weights, entries: dict[str, Entry], encode: Callable[[str, Tensor], dict[str, Tensor]]
) -> Callable[[str], Tensor]:
    """A `make` for `write_shards`: each weight is read and encoded once, its parts handed out as they are asked for.

    Args:
        encode: (name, weight) → the parts that stand for it, by suffix.
    """
    waiting: dict[str, Tensor] = {}

    def make(name: str) -> Tensor:
        if name in waiting:
            return waiting.pop(name)
        base = name.rpartition(".")[0]
        if not is_linear(f"{base}.weight"):
            return weights.tensor(name).to(entries[name].dtype)
        waiting.clear()
        parts = encode(f"{base}.weight", weights.tensor(f"{base}.weight"))
        waiting.update({f"{base}.{suffix}": part for suffix, part in parts.items()})
        return waiting.pop(name)

    return make


def pack_int4(levels: Tensor) -> Tensor:
    """(out, in) levels from -8 to 7 → (out, in/8) int32."""
    nibbles = (levels.to(torch.int64) + 8).view(levels.shape[0], -1, 8)
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_int4(packed: Tensor) -> Tensor:
    """(out, in/8) int32 → (out, in) int8 levels from -8 to 7."""
    nibbles = (packed.to(torch.int64)[..., None] >> torch.arange(0, 32, 4)) & 15
    return (nibbles - 8).to(torch.int8).view(packed.shape[0], -1)


def _int4_scale(values: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """(out, in/group): of amax/7.5 shrunk by up to 35%, the scale with the least squared error in each group."""
    groups = values.view(values.shape[0], -1, group_size)
    amax = groups.abs().amax(-1)
    full = torch.where(amax > 0, amax / 7.5, 1.0)
    best = full.to(dtype)
    least = torch.full_like(full, float("inf"))
    for shrink in _SHRINKS:
        scale = (full * shrink).to(dtype)
        wide = scale.float()[..., None]
        error = ((groups / wide).round().clamp(-8, 7) * wide - groups).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scale, best)
    return best


def _to_levels(values: Tensor, scale: Tensor, group_size: int) -> Tensor:
    groups = values.view(values.shape[0], -1, group_size)
    return (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8).view(values.shape)


class QuantizedTensors:
    """The linear weights of a folder that `export_quantized` (or llmcompressor) wrote, decoded on demand.

    Raises `MifyError` naming a quantization that is not one of the three layouts above.
    """

    def __init__(self, settings: dict[str, Any], files: dict[str, SafetensorsFile], where: str) -> None:
        self._files = files
        self.scheme = _read_scheme(settings, where)

    def part_names(self, name: str) -> list[str]:
        """The stored tensors that stand for the weight `name`."""
        base = name.removesuffix("weight")
        return [base + suffix for suffix in ("weight", "weight_packed", "weight_scale", "weight_shape")
                if base + suffix in self._files]  # fmt: skip

    def tensor(self, name: str) -> Tensor:
        """The fp32 weight."""
        base = name.removesuffix("weight")
        return self.scheme.decode(
            {part.removeprefix(base): self._files[part].tensor(part) for part in self.part_names(name)}
        )


def _read_scheme(settings: dict[str, Any], where: str) -> Scheme:
    kinds = {layout: kind for kind, layout in _FORMATS.items()}
    kind = kinds.get(str(settings.get("format")))
    groups: dict[str, Any] = settings.get("config_groups") or {}
    weights: dict[str, Any] = {}
    if len(groups) == 1:
        weights = next(iter(groups.values())).get("weights") or {}
    expected = {"int4": (4, "group", True), "fp8": (8, "channel", True), "int8": (8, "channel", True)}
    found = (weights.get("num_bits"), weights.get("strategy"), weights.get("symmetric"))
    if settings.get("quant_method") != "compressed-tensors" or kind is None or found != expected[kind]:
        raise MifyError(
            f"{where}: quantization_config {settings.get('quant_method')!r}, format {settings.get('format')!r}, "
            f"weights {found} is not one that can be decoded here",
            "import the unquantized model, or the GGUF file of this one",
        )
    return Scheme(kind, int(weights.get("group_size") or 0))
