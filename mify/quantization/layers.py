"""Calibration text sent through a model layer by layer, so that no more than one layer of it is ever in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mify.errors import MifyError
from mify.export.calibration import LinearInput, watching
from mify.export.weights import Weights
from mify.kernels.rope.rotary import rope_angles
from mify.layers import Block

MIN_TOKENS = 1024
"""Fewer say nothing about which channels are large."""
_CHUNK = 4096
# Layers that read one input: it is recorded under the first.
SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@dataclass(slots=True)
class _Chunk:
    """Some packed sequences on their way through the layers."""

    branch: Tensor | None  # (T, d)
    stream: Tensor  # (T, d)
    cos: Tensor
    sin: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


class LayerPass:
    """The layers of `weights`, one after the other, on calibration text.

    Args:
        sequences: token ids, each at most the context long. samples: tokens of which a layer's inputs are kept whole.
        gram: whether xᵀx of the inputs is summed up.

    Raises:
        MifyError: too little text, an id beyond the vocabulary.
    """

    def __init__(
        self, weights: Weights, sequences: Sequence[Sequence[int]], *, samples: int = 512, gram: bool = False
    ) -> None:
        self._weights, self._samples, self._gram = weights, samples, gram
        total = sum(len(sequence) for sequence in sequences)
        if total < MIN_TOKENS:
            raise MifyError(
                f"the calibration text has {total} tokens, fewer than {MIN_TOKENS}",
                "give more text of the kind the model is for; 16,384 tokens are usual",
            )
        vocabulary = weights.config.vocab_size
        if max(max(sequence, default=0) for sequence in sequences) >= vocabulary:
            raise MifyError(
                f"the calibration tokens go beyond the {vocabulary} of {weights.source}",
                "tokenize the calibration text with the model's own tokenizer",
            )
        self._every = max(1, total // samples)
        self.next_layer = 0
        """The layer that `advance` runs next."""
        self.tensors: dict[str, Tensor] = {}
        """The fp32 tensors of the layer that ran last, by name."""
        self.inputs: dict[str, LinearInput] = {}
        """What went into its linear layers, by weight name; layers that share an input have one entry, the first's."""
        embedding = weights.tensor("model.embed_tokens.weight")
        self._chunks = [self._chunk(part, embedding) for part in _chunks(sequences)]

    def _chunk(self, sequences: list[Sequence[int]], embedding: Tensor) -> _Chunk:
        config = self._weights.config
        lengths = [len(sequence) for sequence in sequences]
        tokens = torch.tensor([token for sequence in sequences for token in sequence])
        positions = torch.cat([torch.arange(length) for length in lengths])
        cos, sin = rope_angles(positions, config.head_dim, config.rope_theta)
        bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        return _Chunk(None, embedding[tokens].float(), cos, sin, bounds, max(lengths))

    @torch.inference_mode()
    def advance(self) -> int:
        """Runs the next layer, leaving its `tensors` and `inputs`, and returns its number."""
        layer, config = self.next_layer, self._weights.config
        base = f"model.layers.{layer}."
        with torch.device("meta"):
            block = Block(config, layer, "auto")
        self.tensors = {base + name: self._weights.tensor(base + name).float() for name in block.state_dict()}
        block.load_state_dict({name.removeprefix(base): tensor for name, tensor in self.tensors.items()}, assign=True)
        modules = {
            f"{base}{name}.weight": module
            for name, module in block.named_modules()
            if name.endswith("_proj") and name.rpartition(".")[2] not in SHARED
        }
        with watching(modules, self._every, self._samples, gram=self._gram) as self.inputs:
            for chunk in self._chunks:
                chunk.branch, chunk.stream = block(
                    chunk.branch, chunk.stream, chunk.cos, chunk.sin, chunk.cu_seqlens, chunk.max_seqlen, None
                )
        self.next_layer += 1
        return layer

    def inputs_of(self, name: str) -> LinearInput | None:
        """What went into the linear layer of the weight `name`, if it is in the layer that ran last."""
        stem, _, kind = name.removesuffix(".weight").rpartition(".")
        return self.inputs.get(f"{stem}.{SHARED.get(kind, kind)}.weight")


def _chunks(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Whole sequences, about `_CHUNK` tokens together."""
    chunks: list[list[Sequence[int]]] = []
    room = 0
    for sequence in sequences:
        if not sequence:
            continue
        if len(sequence) > room:
            chunks.append([])
            room = _CHUNK
        chunks[-1].append(sequence)
        room -= len(sequence)
    return chunks


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to, None for those outside the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None
