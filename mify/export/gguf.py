"""GGUF: the file llama.cpp, Ollama and LM Studio load, written and read.

llama.cpp's rotary positions turn neighbouring pairs where Hugging Face's turn halves, so the rows of the q and k
projections are interleaved head by head on the way out and put back on the way in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export import gguf_types, gguf_vocab
from mify.export.conventions import Conventions
from mify.export.gguf_file import GgufFile
from mify.export.weights import Weights, as_weights, tensor_shapes, to_model
from mify.files import atomic_file

if TYPE_CHECKING:
    from mify.model import Model

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(model: Model | Weights, file: str | os.PathLike[str], dtype: str = "f32") -> list[str]:
    """Writes a GGUF file that llama.cpp loads, with equal token ids and, in f32, equal greedy tokens.

    Args:
        model: a model, or the weights of a file, which are then streamed a tensor at a time.
        file: appears whole or not at all.
        dtype: a key of `gguf_types.RECIPES`; vectors stay F32.

    Returns:
        What an engine does otherwise than the tokenizer (empty for our own models).

    Raises:
        MifyError: no tokenizer, or one that llama.cpp has no equal for; a value that F16 cannot hold.
    """
    import gguf

    weights = as_weights(model)
    weights.check_vocabulary()
    recipe = gguf_types.recipe(dtype)
    config = weights.config
    if weights.tokenizer is None:
        raise MifyError(
            f"{weights.source} has no tokenizer, and a GGUF file carries one",
            "put tokenizer.json beside the weights, or set model.tokenizer",
        )
    vocabulary = gguf_vocab.from_tokenizer_json(
        weights.tokenizer.definition, config.vocab_size, weights.conventions, weights.source
    )
    names = {name: gguf_name(name) for name in tensor_shapes(config)}
    kinds: dict[str, str] = {}
    with atomic_file(file) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _add_metadata(writer, config, recipe.file_type)
        _add_vocabulary(writer, vocabulary, weights.conventions)
        for name, shape in tensor_shapes(config).items():
            kind = gguf_types.tensor_type(
                names[name],
                shape,
                dtype,
                layer=_layer_of(name),
                num_layers=config.num_layers,
                queries_per_kv=config.num_query_heads // config.num_kv_heads,
                tied=config.tie_embeddings,
            )
            kinds[name] = kind
            number = gguf.GGMLQuantizationType[kind]
            # A dtype other than uint8 tells the writer that the shape counts values, not bytes.
            size = gguf_types.encoded_bytes(shape, kind)
            writer.add_tensor_info(names[name], list(shape), np.dtype(np.float32), size, raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        alignment = writer.data_alignment
        writer.close()
        # The data is written here: numpy's tofile, which the writer uses, hides that a disk is full.
        with open(temporary, "ab") as out:
            out.write(bytes(-out.tell() % alignment))
            for name, kind in kinds.items():
                for part in gguf_types.encode(_to_gguf(name, weights.tensor(name), config), kind, name):
                    out.write(part)
                out.write(bytes(-out.tell() % alignment))
    return vocabulary.notes


def import_gguf(
    file: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The model of a GGUF file, dequantized. Raises `MifyError` naming what is not Llama-shaped, missing or damaged."""
    return to_model(GgufWeights(file), dtype=dtype, device=device)


class GgufWeights(Weights):
    """A GGUF file, its tensors dequantized on demand."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        from mify.tokenizer import Tokenizer

        self.source = str(file)
        self._file = GgufFile(file)
        self._fields, self._tensors = self._file.fields, self._file.tensors
        self.config = self._read_config()
        self._check_tensors()
        vocabulary = self._read_vocabulary()
        self.tokenizer = Tokenizer(gguf_vocab.to_tokenizer_json(vocabulary, self.source))
        ids = vocabulary.special_ids
        self.conventions = Conventions(
            bos_id=ids.get("bos"),
            eos_ids=tuple(dict.fromkeys(ids[key] for key in ("eos", "eot") if key in ids)),
            pad_id=ids.get("padding"),
            add_bos=vocabulary.add_bos,
            chat_template=self._fields.get("tokenizer.chat_template"),
        )

    def tensor(self, name: str) -> Tensor:
        import gguf

        stored = self._tensors[gguf_name(name)]
        raw = self._file.data(gguf_name(name))
        dtype = self.dtype(name)
        if stored.kind in ("F32", "F16", "BF16"):
            values = torch.from_numpy(raw).view(dtype)
        else:
            kind = gguf.GGMLQuantizationType[stored.kind]
            values = torch.from_numpy(gguf.dequantize(raw.reshape(stored.shape[0], -1), kind))
        return _from_gguf(name, values.reshape(stored.shape), self.config)

    def dtype(self, name: str) -> torch.dtype:
        kind = self._tensors[gguf_name(name)].kind
        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)

    def _read_config(self) -> ModelConfig:
        fields, where = self._fields, self.source
        architecture = fields.get("general.architecture")
        if architecture != "llama":
            raise MifyError(
                f"{where}: architecture {architecture!r} is not Llama's", "only architecture 'llama' can be imported"
            )
        wanted: dict[str, tuple[Any, ...]] = {
            "llama.rope.scaling.type": (None, "none"),
            "llama.expert_count": (None, 0),
            "llama.attention.sliding_window": (None, 0),
            "llama.attention.scale": (None, 0),
            "llama.logit_scale": (None, 0),
            "llama.embedding_scale": (None, 0),
            "llama.residual_scale": (None, 0),
        }
        for key, allowed in wanted.items():
            if fields.get(key) not in allowed:
                raise MifyError(
                    f"{where}: {key} is {fields[key]!r}, which Llama's plain form has not",
                    "only models without it can be imported",
                )

        def number(key: str, default: Any = None) -> Any:
            value = fields.get(f"llama.{key}", default)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                problem = "is missing" if value is None else f"is {value!r}, not one number"
                raise MifyError(f"{where}: llama.{key} {problem}", "convert the model again with a current converter")
            return value

        heads = number("attention.head_count")
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise MifyError(f"{where} has no token_embd.weight", "the file is incomplete: download or export it again")
        hidden = number("embedding_length")
        head_dim = number("attention.key_length", hidden // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if number(key, head_dim) != head_dim:
                raise MifyError(
                    f"{where}: llama.{key} is {number(key)}, but the heads have {head_dim} dimensions",
                    "only models with one head dimension, all of it rotated, can be imported",
                )
        try:
            return ModelConfig(
                name=str(fields.get("general.name") or Path(where).stem),
                num_layers=number("block_count"),
                hidden_size=hidden,
                num_query_heads=heads,
                num_kv_heads=number("attention.head_count_kv", heads),
                head_dim=head_dim,
                ffn_size=number("feed_forward_length"),
                vocab_size=embedding.shape[0],
                context=number("context_length"),
                rope_theta=round_float32(number("rope.freq_base", 10_000.0)),
                rms_norm_eps=round_float32(number("attention.layer_norm_rms_epsilon")),
                tie_embeddings="output.weight" not in self._tensors,
            )
        except MifyError as error:
            raise MifyError(f"{where}: {error.problem}", error.remedy) from None

    def _check_tensors(self) -> None:
        shapes = {gguf_name(name): shape for name, shape in tensor_shapes(self.config).items()}
        for name in self._tensors:
            if name not in shapes:
                what = "rotary positions are scaled per frequency" if name == "rope_freqs.weight" else "unknown here"
                raise MifyError(
                    f"{self.source} has the tensor {name}, which Llama's plain form has not ({what})",
                    "only models without it can be imported",
                )
        for name, shape in shapes.items():
            if name not in self._tensors:
                raise MifyError(f"{self.source} lacks {name}", "the file is incomplete: download or export it again")
            found = self._tensors[name]
            if found.shape != shape:
                raise MifyError(
                    f"{self.source}: {name} has shape {found.shape}, its metadata asks for {shape}",
                    "the file is damaged: download or export it again",
                )

    def _read_vocabulary(self) -> gguf_vocab.GgufVocabulary:
        fields, prefix = self._fields, "tokenizer.ggml."
        kind = fields.get(f"{prefix}model")
        if kind != "gpt2":
            raise MifyError(
                f"{self.source}: its tokenizer is {kind!r} (SentencePiece or another), not byte-level BPE ('gpt2')",
                "only byte-level BPE models can be imported",
            )
        for key, item in (("tokens", str), ("token_type", int), ("merges", str), ("pre", None)):
            value = fields.get(f"{prefix}{key}")
            if not (isinstance(value, str) if item is None else _is_list_of(value, item)):
                problem = "lacks" if value is None else "has an unreadable"
                raise MifyError(
                    f"{self.source} {problem} {prefix}{key}", "convert the model again with a current converter"
                )
        tokens = fields[f"{prefix}tokens"]
        if len(tokens) != self.config.vocab_size:
            raise MifyError(
                f"{self.source} has {len(tokens)} tokens for {self.config.vocab_size} embedding rows",
                "the file is damaged: download or export it again",
            )
        special = {
            key.removeprefix(prefix).removesuffix("_token_id"): int(value)
            for key, value in fields.items()
            if key.startswith(prefix) and key.endswith("_token_id") and value in range(len(tokens))
        }
        pre = fields[f"{prefix}pre"]
        # llama.cpp's default for this key depends on the pre-tokenizer.
        add_bos = fields.get(f"{prefix}add_bos_token", pre in ("llama-bpe", "llama3", "llama-v3"))
        return gguf_vocab.GgufVocabulary(
            tokens, fields[f"{prefix}token_type"], fields[f"{prefix}merges"], pre, special, bool(add_bos)
        )


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face Llama tensor."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def round_float32(value: float) -> float:
    """The shortest decimal that is the same fp32: GGUF stores fp32, and 1e-5 would come back as 9.99999974e-06."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _layer_of(name: str) -> int:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def _heads_of(name: str, config: ModelConfig) -> int | None:
    if name.endswith("q_proj.weight"):
        return config.num_query_heads
    return config.num_kv_heads if name.endswith("k_proj.weight") else None


def _to_gguf(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Interleaves the two halves of every head's rows, where rotary positions turn them."""
    heads = _heads_of(name, config)
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _from_gguf(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    heads = _heads_of(name, config)
    if heads is None:
        return tensor
    return tensor.view(heads, -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _add_metadata(writer: Any, config: ModelConfig, file_type: int) -> None:
    import gguf

    writer.add_name(config.name)
    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_query_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, vocabulary: gguf_vocab.GgufVocabulary, conventions: Conventions) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for key, token_id in vocabulary.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    if conventions.chat_template:
        writer.add_chat_template(conventions.chat_template)
