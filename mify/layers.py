"""The layers of the model: thin modules over mify.kernels, named as Hugging Face's Llama names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mify.config import ModelConfig
from mify.kernels import add_rms_norm, apply_rope, gqa_attention, rms_norm, swiglu

if TYPE_CHECKING:
    from mify.decoding import KVCache


class RMSNorm(nn.Module):
    """y = x / rms(x) · weight, alone or on top of a residual stream; see `mify.kernels.norm.norm`."""

    def __init__(self, size: int, eps: float, impl: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        """x (T, d) → (T, d)."""
        return rms_norm(x, self.weight, self.eps, impl=self.impl)

    def add(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of branch + stream, and that sum, in one pass; all (T, d)."""
        return add_rms_norm(branch, stream, self.weight, self.eps, impl=self.impl)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over packed documents, or over a cache."""

    def __init__(self, config: ModelConfig, layer: int, impl: str) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.impl = impl
        queries, keys = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int, cache: KVCache | None
    ) -> Tensor:
        """x (T, d); cos and sin (T, head_dim/2) → (T, d)."""
        tokens = x.shape[0]
        q = self.q_proj(x).view(tokens, -1, self.head_dim)
        k = self.k_proj(x).view(tokens, -1, self.head_dim)
        v = self.v_proj(x).view(tokens, -1, self.head_dim)
        q, k = apply_rope(q, k, cos, sin, impl=self.impl)
        if cache is None:
            out = gqa_attention(q, k, v, cu_seqlens, max_seqlen, impl=self.impl)
        else:
            out = cache.attend(self.layer, q, k, v, cu_seqlens, max_seqlen, self.impl)
        return self.o_proj(out.view(tokens, -1))


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, impl: str) -> None:
        super().__init__()
        self.impl = impl
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, d) → (T, d)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), impl=self.impl))


class Block(nn.Module):
    """One decoder layer: attention and MLP, each behind a norm and added to the residual stream.

    What the MLP gives is added by the next norm, which reads it anyway, so a layer takes and returns two tensors: the
    last branch and the stream without it.
    """

    def __init__(self, config: ModelConfig, layer: int, impl: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, impl)
        self.self_attn = Attention(config, layer, impl)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, impl)
        self.mlp = MLP(config, impl)

    def forward(
        self,
        branch: Tensor | None,
        stream: Tensor,
        cos: Tensor,
        sin: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor]:
        """branch (None in the first layer) and stream (T, d) → the MLP's branch and the stream, (T, d) each."""
        if branch is None:
            y = self.input_layernorm(stream)
        else:
            y, stream = self.input_layernorm.add(branch, stream)
        y, stream = self.post_attention_layernorm.add(
            self.self_attn(y, cos, sin, cu_seqlens, max_seqlen, cache), stream
        )
        return self.mlp(y), stream


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, impl: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, impl) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, impl)

    def forward(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int, cache: KVCache | None
    ) -> Tensor:
        """tokens (T,) → (T, d)."""
        branch: Tensor | None = None
        stream = F.embedding(tokens, self.embed_tokens.weight)
        for layer in self.layers:
            branch, stream = layer(branch, stream, cos, sin, cu_seqlens, max_seqlen, cache)
        assert branch is not None
        return self.norm.add(branch, stream)[0]
