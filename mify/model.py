"""The model: a Llama-shaped decoder over packed documents. Its parameters carry Hugging Face Llama's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.kernels import linear_cross_entropy, linear_log_probs
from mify.kernels.rope.rotary import rope_angles
from mify.layers import Decoder

if TYPE_CHECKING:
    from mify.data.batch import PackedBatch
    from mify.engine.cache import PagedCache
    from mify.tokenizer import Tokenizer


class Model(nn.Module):
    """A decoder-only language model.

    Args:
        config: its shape.
        seed: of the initial weights, which depend on nothing else.
        impl: the backends of its kernels, see `mify.kernels.dispatch`.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, impl: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.impl = impl
        self.tokenizer: Tokenizer | None = None
        self.model = Decoder(config, impl)
        self.lm_head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not self.head_weight.is_meta:
            self.init_weights(seed)

    @property
    def head_weight(self) -> Tensor:
        """The (V, d) matrix of the output layer: the embedding when they are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Normal(0, 0.02), and 0.02/√(2·layers) for the matrices that write to the residual stream (GPT-2's rule)."""
        generator = torch.Generator(device=self.head_weight.device).manual_seed(seed)
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, residual_std if writes else 0.02, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        cache: PagedCache | None = None,
    ) -> Tensor:
        """The final hidden states (T, d) of packed documents.

        Args:
            tokens: (T,) int64 ids. positions: (T,) int64, from 0 in each document.
            cu_seqlens: (M,) int32 bounds of the documents, padded by repeats of T. max_seqlen: the longest allowed.
            cache: keys and values of earlier tokens, see `mify.engine.cache`; None in training.
        """
        cos, sin = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        hidden: Tensor = self.model(tokens, cos, sin, cu_seqlens, max_seqlen, cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, V) of hidden states (T, d)."""
        return hidden @ self.head_weight.t()

    def loss(self, batch: PackedBatch, *, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        """The sum of the token losses (scalar, fp32) and the number of labelled tokens (scalar, int64)."""
        hidden = self(batch.tokens, batch.positions, batch.cu_seqlens, batch.max_seqlen)
        return linear_cross_entropy(hidden, self.head_weight, batch.labels, z_loss=z_loss, impl=self.impl)

    def log_probs(self, batch: PackedBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(T,) log-probabilities of the labels and (T,) entropies of what was to be predicted, 0 without a label."""
        hidden = self(batch.tokens, batch.positions, batch.cu_seqlens, batch.max_seqlen)
        return linear_log_probs(hidden, self.head_weight, batch.labels, temperature=temperature)

    def num_parameters(self) -> int:
        """Counted from the tensors; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def generate(
        self,
        prompt: str | list[int],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """The continuation of `prompt` as text, without the prompt; ends at end-of-text or before a stop string."""
        from mify.engine import SamplingParams
        from mify.generate import request_seed, stream_text

        params = SamplingParams(max_new_tokens, temperature, top_k, top_p, min_p, request_seed(seed, 0), stop)
        return "".join(stream_text(self, prompt, params))

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """The text between `prefix` and `suffix`, in prefix-suffix-middle order; ends at end-of-text.

        Where the context is too short for both, what is farthest from the gap is left out.
        """
        from mify.generate import infill_prompt

        prompt = infill_prompt(self, prefix, suffix, max_new_tokens)
        return self.generate(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            seed=seed, stop=stop,
        )  # fmt: skip

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer, or `MifyError` when the model has none."""
        if self.tokenizer is None:
            raise MifyError(
                f"the model {self.config.name!r} has no tokenizer",
                "set model.tokenizer = Tokenizer.load(folder), or load a folder that contains tokenizer.json",
            )
        return self.tokenizer
