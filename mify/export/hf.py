"""Hugging Face folders: what `transformers`, vLLM, SGLang and TensorRT-LLM load, written and read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mify.errors import MifyError
from mify.export.conventions import Conventions
from mify.export.hf_config import read_config, write_config
from mify.export.hf_files import INDEX, MAX_SHARD_BYTES, SINGLE, write_shards, write_text_files
from mify.export.model_card import CardFacts, model_card
from mify.export.quantized import QuantizedTensors, is_linear
from mify.export.safetensors_file import Entry, SafetensorsFile
from mify.export.weights import Weights, as_weights, dtype_name, tensor_shapes, to_model
from mify.files import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from mify.model import Model
    from mify.quantization.scheme import Scheme

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def export_hf(
    model: Model | Weights,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    facts: CardFacts | None = None,
) -> Path:
    """Writes a folder that `transformers` loads as `LlamaForCausalLM`, with equal logits in fp32.

    Args:
        model: a model, or the weights of a file, which are then streamed a tensor at a time.
        folder: appears whole or not at all, replacing a model's folder that was there, and nothing else.
        dtype: of the weights; None keeps each as it is.
        max_shard_bytes: above it the weights are split into `model-00001-of-0000N.safetensors` with an index.
        facts: for the model card (README.md).
    """
    weights = as_weights(model)
    weights.check_vocabulary()
    folder = Path(folder)
    entries = {
        name: Entry(dtype or weights.dtype(name), shape) for name, shape in tensor_shapes(weights.config).items()
    }
    with atomic_folder(folder, replaces="config.json") as temporary:

        def make(name: str) -> Iterator[Tensor]:
            return (block.to(entries[name].dtype) for block in weights.blocks(name))

        write_shards(temporary, entries, make, max_shard_bytes=max_shard_bytes)
        main = entries["model.embed_tokens.weight"].dtype
        write_json(temporary / "config.json", write_config(weights.config, weights.conventions, dtype_name(main)))
        write_text_files(temporary, weights, model_card(weights, facts, dtype=dtype_name(main)))
    return folder


def import_hf(
    folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The model of a Hugging Face folder. Raises `MifyError` naming what is not Llama-shaped, missing or damaged."""
    return to_model(HfWeights(folder), dtype=dtype, device=device)


class HfWeights(Weights):
    """A Hugging Face folder, its tensors read on demand."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from mify.tokenizer import Tokenizer

        self.folder = Path(folder)
        self.source = str(self.folder)
        values = _object(self.folder / "config.json")
        self.config = read_config(values, str(self.folder / "config.json"), self.folder.resolve().name)
        self._files = self._open()
        settings = values.get("quantization_config")
        self._quantized = QuantizedTensors(settings, self._files, self.source) if settings else None
        self._check_tensors()
        self.tokenizer = Tokenizer.load(self.folder) if (self.folder / "tokenizer.json").exists() else None
        self.conventions = self._conventions(values)
        self.check_vocabulary()

    def tensor(self, name: str) -> Tensor:
        if self._quantized is not None and is_linear(name):
            return self._quantized.tensor(name)
        return self._files[name].tensor(name)

    @property
    def scheme(self) -> Scheme | None:
        return None if self._quantized is None else self._quantized.scheme

    def stored(self, name: str) -> dict[str, Tensor]:
        if self._quantized is None:
            return super().stored(name)
        return self._quantized.stored(name)

    def blocks(self, name: str) -> Iterator[Tensor]:
        if self._quantized is not None and is_linear(name):
            yield self.tensor(name)
        else:
            yield from self._files[name].blocks(name)

    def dtype(self, name: str) -> torch.dtype:
        if self._quantized is not None and is_linear(name):
            return torch.float32
        return self._files[name].entries[name].dtype

    def _open(self) -> dict[str, SafetensorsFile]:
        """Tensor name → its file."""
        if (self.folder / INDEX).exists():
            index = _object(self.folder / INDEX).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise MifyError(f"{self.folder / INDEX} has no weight_map", "download or export the folder again")
            files = {file: SafetensorsFile(self.folder / file) for file in sorted(set(index.values()))}
            for name, file in index.items():
                if name not in files[file].entries:
                    raise MifyError(
                        f"{self.folder / file} lacks {name}, which {INDEX} says it holds",
                        "download or export the folder again",
                    )
            return {name: files[file] for name, file in index.items()}
        if (self.folder / SINGLE).exists():
            single = SafetensorsFile(self.folder / SINGLE)
            return dict.fromkeys(single.entries, single)
        if list(self.folder.glob("pytorch_model*.bin")):
            raise MifyError(
                f"{self.folder} has its weights as pickles (pytorch_model.bin)",
                "convert them with transformers: model.save_pretrained(folder, safe_serialization=True)",
            )
        raise MifyError(f"{self.folder} has neither {SINGLE} nor {INDEX}", "download or export the folder again")

    def _check_tensors(self) -> None:
        expected = self._expected()
        for name in self._files:
            if name in expected or name.endswith(".rotary_emb.inv_freq"):
                continue
            if name == "lm_head.weight" and self.config.tie_embeddings:
                continue
            what = "a bias" if name.endswith(".bias") else "a tensor"
            raise MifyError(
                f"{self.folder} has {name}, {what} that Llama's plain form has not",
                "only models without it can be imported",
            )
        missing = [name for name in expected if name not in self._files]
        if missing:
            raise MifyError(
                f"{self.folder} lacks {len(missing)} of {len(expected)} tensors: {', '.join(missing[:3])} …",
                "download or export the folder again, or correct config.json",
            )
        for name, entry in expected.items():
            found = self._files[name].entries[name]
            if found.shape != entry.shape:
                raise MifyError(
                    f"{self.folder}: {name} has shape {found.shape}, config.json asks for {entry.shape}",
                    "use the config.json that belongs to these weights",
                )
            floating = entry.dtype.is_floating_point and entry.dtype.itemsize >= 2
            of_kind = found.dtype.is_floating_point and found.dtype.itemsize >= 2
            if (found.dtype != entry.dtype) if not floating else not of_kind:
                raise MifyError(
                    f"{self.folder}: {name} is stored as {dtype_name(found.dtype)}, config.json says otherwise",
                    "use the config.json that belongs to these weights, or import the unquantized model",
                )

    def _expected(self) -> dict[str, Entry]:
        """Stored name → dtype (any wider float stands for a float) and shape."""
        expected: dict[str, Entry] = {}
        for name, shape in tensor_shapes(self.config).items():
            if self._quantized is not None and is_linear(name):
                base = name.removesuffix("weight")
                parts = self._quantized.scheme.entries(shape)
                expected |= {base + suffix: entry for suffix, entry in parts.items()}
            else:
                expected[name] = Entry(torch.float32, shape)
        return expected

    def _conventions(self, values: dict[str, Any]) -> Conventions:
        if self.tokenizer is None:
            return Conventions()
        generation = _object(self.folder / "generation_config.json", optional=True)
        settings = _object(self.folder / "tokenizer_config.json", optional=True)
        template_file = self.folder / "chat_template.jinja"
        template = template_file.read_text("utf-8") if template_file.exists() else settings.get("chat_template")
        eos = generation.get("eos_token_id", values.get("eos_token_id"))
        # The tokenizer's own end token comes first: it is the one that ends a chat turn or a document.
        own = self.tokenizer.special.get(_text(settings.get("eos_token")))
        ids = [own] if own is not None else []
        ids += [token for token in (eos if isinstance(eos, list) else [eos]) if isinstance(token, int)]
        if not ids:
            ids = list(Conventions.of(self.tokenizer).eos_ids)
        post = self.tokenizer.definition.get("post_processor") or {}
        bos = self.tokenizer.special.get(_text(settings.get("bos_token")), values.get("bos_token_id"))
        return Conventions(
            bos_id=bos,
            eos_ids=tuple(dict.fromkeys(ids)),
            pad_id=self.tokenizer.special.get(_text(settings.get("pad_token")), values.get("pad_token_id")),
            add_bos=bos is not None and '"TemplateProcessing"' in json.dumps(post),
            chat_template=template if isinstance(template, str) else None,
        )


def _object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise MifyError(f"{path} holds no JSON object", "download or export the folder again")
    return value


def _text(token: Any) -> str:
    """The text of a special token as tokenizer_config.json writes it: a string, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
