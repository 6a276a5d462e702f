"""`config.json` of a Hugging Face Llama, written from a `ModelConfig` and read into one.

What is not Llama-shaped is refused by its name: a wrong guess here would load and compute something else.
"""

from __future__ import annotations

from typing import Any

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.conventions import Conventions

# Architectures whose arithmetic is Llama's when the fields checked below have Llama's values.
MODEL_TYPES = ("llama", "mistral")

_NUMBERS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
}


def write_config(config: ModelConfig, conventions: Conventions, dtype: str) -> dict[str, Any]:
    """The `config.json` that `transformers` reads as `LlamaForCausalLM`.

    Args:
        dtype: name of the weights' dtype ("float32", "bfloat16", "float16").

    `rope_theta` and `torch_dtype` stand there twice, as transformers 5 and as older engines (vLLM, TensorRT-LLM) read
    them.
    """
    eos = list(conventions.eos_ids)
    return {
        "_name_or_path": config.name,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": conventions.bos_id,
        "dtype": dtype,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_query_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": conventions.pad_id,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def read_config(values: dict[str, Any], where: str, name: str) -> ModelConfig:
    """The shape that a Hugging Face `config.json` describes.

    Args:
        values: the parsed file. where: its path, for messages. name: the model's, where the file gives none.

    Raises:
        MifyError: naming the first thing that is not Llama-shaped, or the key that is missing.
    """
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise MifyError(
            f"{where}: model_type {kind!r} is not Llama-shaped as far as is known here",
            f"models of type {', '.join(MODEL_TYPES)} can be imported",
        )
    wanted: dict[str, tuple[Any, ...]] = {
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "hidden_act": ("silu", "swish", None),
        "sliding_window": (None,),
        "pretraining_tp": (1, None),
        "partial_rotary_factor": (1, 1.0, None),
        "num_local_experts": (None,),
    }
    for key, allowed in wanted.items():
        if values.get(key) not in allowed:
            raise MifyError(
                f"{where}: {key} is {values[key]!r}, which Llama's plain form has not",
                "only models without it can be imported",
            )
    rope = _rope(values, where)
    missing = [theirs for theirs in _NUMBERS.values() if theirs not in values]
    if missing:
        raise MifyError(f"{where} lacks {', '.join(missing)}", "the file is incomplete: download it again")
    heads = values["num_attention_heads"]
    kv_heads = values.get("num_key_value_heads")
    head_dim = values.get("head_dim")
    try:
        return ModelConfig(
            name=str(values.get("_name_or_path") or name),
            num_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=values["hidden_size"] // heads if head_dim is None else head_dim,
            rope_theta=rope,
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
            **{ours: values[theirs] for ours, theirs in _NUMBERS.items()},
        )
    except (TypeError, ZeroDivisionError) as error:
        raise MifyError(f"{where}: {error}", "the file is damaged: download it again") from None
    except MifyError as error:
        raise MifyError(f"{where}: {error.problem}", error.remedy) from None


def _rope(values: dict[str, Any], where: str) -> float:
    """θ of plain rotary positions; scaled ones are refused by name."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise MifyError(
            f"{where}: rotary positions are scaled ({kind!r}: {parameters})",
            "only unscaled rotary positions are computed here; use a checkpoint from before the context extension",
        )
    theta = parameters.get("rope_theta", values.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, (int, float)):
        raise MifyError(f"{where}: rope_theta is {theta!r}", "give a positive number")
    return float(theta)
