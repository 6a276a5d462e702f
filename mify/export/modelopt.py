"""Static per-tensor FP8 in the layout of NVIDIA's ModelOpt, which TensorRT-LLM reads (vLLM and SGLang too).

For each linear weight W: `weight` float8_e4m3fn = W / weight_scale, `weight_scale` f32 scalar = amax(W)/448,
`input_scale` f32 scalar = amax(x)/448 over calibration text. `hf_quant_config.json` names the algorithm; config.json
repeats it. The layout is held to a folder that ModelOpt 0.47 wrote; TensorRT-LLM itself was not run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mify.export.calibration import linear_inputs
from mify.export.hf_config import write_config
from mify.export.hf_files import MAX_SHARD_BYTES, write_shards, write_text_files
from mify.export.model_card import CardFacts, model_card
from mify.export.quantized import encoder, is_linear
from mify.export.safetensors_file import Entry
from mify.export.weights import ModelWeights, dtype_name, tensor_shapes
from mify.files import atomic_folder, write_json
from mify.quantization.scheme import FP8_MAX

if TYPE_CHECKING:
    from mify.model import Model

# Readers take the producer for the name of the layout.
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def export_modelopt(
    model: Model,
    folder: str | os.PathLike[str],
    sequences: Sequence[Sequence[int]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    facts: CardFacts | None = None,
) -> Path:
    """Writes a ModelOpt FP8 folder.

    Args:
        sequences: token ids of calibration text, each at most the context long.
        dtype: of what is not quantized. facts: for the model card (README.md).
    """
    inputs = linear_inputs(model, sequences, samples=1)
    weights = ModelWeights(model)
    entries: dict[str, Entry] = {}
    for name, shape in tensor_shapes(weights.config).items():
        if is_linear(name):
            base = name.removesuffix("weight")
            entries[name] = Entry(torch.float8_e4m3fn, shape)
            entries |= {f"{base}{scale}": Entry(torch.float32, ()) for scale in ("weight_scale", "input_scale")}
        else:
            entries[name] = Entry(dtype, shape)

    def encode(name: str, weight: Tensor) -> dict[str, Tensor]:
        values = weight.float()
        scale = (values.abs().max() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        stem, _, kind = name.removesuffix(".weight").rpartition(".")
        seen = inputs[f"{stem}.{_SHARED.get(kind, kind)}.weight"]
        return {
            "weight": (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn),
            "weight_scale": scale,
            "input_scale": torch.tensor(seen.amax / FP8_MAX, dtype=torch.float32),
        }

    folder = Path(folder)
    with atomic_folder(folder, replaces="config.json") as temporary:
        write_shards(temporary, entries, encoder(weights, entries, encode), max_shard_bytes=max_shard_bytes)
        config = write_config(weights.config, weights.conventions, dtype_name(dtype))
        write_json(temporary / "config.json", {**config, "quantization_config": _for_config_json()})
        write_json(temporary / "hf_quant_config.json", _hf_quant_config())
        card = model_card(weights, facts, dtype=dtype_name(dtype), kind="modelopt")
        write_text_files(temporary, weights, card)
    return folder


_EXCLUDED = ["lm_head", "model.embed_tokens"]


def _hf_quant_config() -> dict[str, Any]:
    return {
        "producer": PRODUCER,
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": _EXCLUDED},
    }


def _for_config_json() -> dict[str, Any]:
    static = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {
        "config_groups": {"group_0": {"input_activations": static, "weights": static, "targets": ["Linear"]}},
        "ignore": _EXCLUDED,
        "producer": PRODUCER,
        "quant_algo": "FP8",
        "quant_method": "modelopt",
    }
