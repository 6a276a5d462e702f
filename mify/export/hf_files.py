"""The files of a Hugging Face folder besides config.json: weights in shards, tokenizer, generation settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mify.export.safetensors_file import Entry, Made, write
from mify.export.weights import Weights
from mify.files import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
_FIM = {
    "fim_prefix_token": "fim_prefix_id",
    "fim_middle_token": "fim_middle_id",
    "fim_suffix_token": "fim_suffix_id",
}


def write_shards(
    folder: Path, entries: dict[str, Entry], make: Callable[[str], Made], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes tensors to `model.safetensors`, or to shards with an index where they exceed `max_shard_bytes`."""
    shards: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if shards[-1] and filled + entry.num_bytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += entry.num_bytes
    if len(shards) == 1:
        write(folder / SINGLE, shards[0], make)
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / file, shard, make)
        files |= dict.fromkeys(shard, file)
    total = sum(entry.num_bytes for entry in entries.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def write_text_files(folder: Path, weights: Weights, card: str) -> None:
    """README.md (`card`), generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    conventions = weights.conventions
    generation = {
        "bos_token_id": conventions.bos_id,
        "eos_token_id": list(conventions.eos_ids) or None,
        "pad_token_id": conventions.pad_id,
    }
    write_json(folder / "generation_config.json", generation)
    tokenizer = weights.tokenizer
    if tokenizer is None:
        return
    text_of = {token_id: text for text, token_id in tokenizer.definition["model"]["vocab"].items()}
    text_of |= {token_id: text for text, token_id in tokenizer.special.items()}
    settings: dict[str, Any] = {
        "add_bos_token": conventions.add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": weights.config.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    ids = {
        "bos_token": conventions.bos_id,
        "eos_token": conventions.eos_ids[0] if conventions.eos_ids else None,
        "pad_token": conventions.pad_id,
    }
    settings |= {key: text_of[token_id] for key, token_id in ids.items() if token_id is not None}
    fim = {key: getattr(tokenizer, attribute) for key, attribute in _FIM.items()}
    if all(token_id is not None for token_id in fim.values()):
        settings["extra_special_tokens"] = {key: text_of[token_id] for key, token_id in fim.items()}
    write_json(folder / "tokenizer_config.json", settings)
    text = json.dumps(tokenizer.definition, ensure_ascii=False, indent=1) + "\n"
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if conventions.chat_template:
        (folder / "chat_template.jinja").write_text(conventions.chat_template, encoding="utf-8")
