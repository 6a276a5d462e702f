"""The layers of the model: thin modules over mify.kernels, named as Hugging Face's Llama names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mify.config import ModelConfig
from mify.kernels import add_rms_norm, apply_rope, gqa_attention, rms_norm, swiglu
from mify.kernels.gemm import fp8 as transformer_engine
from mify.kernels.gemm.linear import Cache, fp8_linear, fp8_norm_linears, fp8_swiglu_linear
from mify.kernels.gemm.scaling import DEFAULT_HISTORY, Delayed, Kind, compile_refuses, ready, set_scales

if TYPE_CHECKING:
    from mify.engine.cache import PagedCache


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


class Fp8Linear(nn.Module):
    """x Wᵀ with x, W and the gradient in FP8, in the place of a linear layer without bias; see `mify.fp8`.

    Delayed scaling keeps its state in buffers, which go into checkpoints: `fp8_history` and `fp8_scale`, or those that
    Transformer Engine has (`mify.kernels.gemm.fp8.STATE`).

    Args:
        weight: (N, K), multiples of 16; the parameter of the layer that this one replaces.
        kind: the recipe, see `mify.kernels.gemm.scaling`.
        engine: whether Transformer Engine computes; otherwise mify's kernels, by `impl`.
        history, margin: of delayed scaling.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        kind: Kind,
        *,
        engine: bool = False,
        impl: str = "auto",
        history: int = DEFAULT_HISTORY,
        margin: int = 0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.kind, self.impl, self.history, self.margin = kind, impl, history, margin
        # In a list, so that it is no submodule: its parameter is this layer's, and names stay as they were.
        self.engine: list[Any] = []
        self.first_microbatch: bool | None = None
        self.ready = False
        self._cache: Cache = {}
        if engine:
            self.engine.append(transformer_engine.make_linear(weight.shape[1], weight.shape[0]))
        if kind == "delayed" and engine:
            for name, count in transformer_engine.STATE.items():
                shape = (history, count) if name.startswith("history") else (count,)
                self.register_buffer(f"fp8_{name}", torch.zeros(shape, device=weight.device))
        elif kind == "delayed":
            state = Delayed.empty(history, weight.device)
            self.register_buffer("fp8_history", state.history)
            self.register_buffer("fp8_scale", state.scale)
            self.register_buffer("fp8_amax", state.amax, persistent=False)

    def extra_repr(self) -> str:
        """For print(model)."""
        by = "Transformer Engine" if self.engine else self.impl
        return f"{self.weight.shape[1]} → {self.weight.shape[0]}, {self.kind}, {by}"

    def forward(self, x: Tensor) -> Tensor:
        """x (T, K) bfloat16 or float32 → (T, N)."""
        if self.engine:
            return transformer_engine.run(self.engine[0], x, self.weight, self.first_microbatch)
        return fp8_linear(x, self.weight, self.kind, state=self.state(), cache=self.cache(), impl=self.impl)

    def state(self, *, recording: bool | None = None) -> Delayed | None:
        """The state of delayed scaling.

        Args:
            recording: whether largest values are written down; None: where gradients are computed, so that an
                evaluation leaves no trace.
        """
        if self.kind != "delayed" or self.engine:
            return None
        if torch.compiler.is_compiling():
            raise RuntimeError(compile_refuses(self.kind))
        amax: Tensor = self.get_buffer("fp8_amax")
        state = Delayed(self.get_buffer("fp8_history"), self.get_buffer("fp8_scale"), amax, self.ready)
        recording = torch.is_grad_enabled() if recording is None else recording
        return state if recording else dataclasses.replace(state, amax=torch.zeros_like(amax))

    def cache(self) -> Cache | None:
        """Where the quantized weight is kept between the micro-batches of a step; None where it is not."""
        if self.first_microbatch is None:
            return None
        if self.first_microbatch:
            self._cache.clear()
        return self._cache

    def forget(self) -> None:
        """Drops the quantized weight: the weight has changed, or is about to."""
        self.first_microbatch = None
        self._cache.clear()

    def state_was_loaded(self, gradient_factor: float = 1.0) -> None:
        """Takes up the history that a checkpoint put into the buffers; see `mify.fp8.state_was_loaded`."""
        self.forget()
        state = self.state(recording=True)
        if state is not None:
            state.amax.zero_()
            set_scales([state], self.margin, gradient_factor)
            self.ready = ready(state)

    def fuses_with(self, other: nn.Module) -> bool:
        """Whether both take an input that was quantized once, by our kernels."""
        alike = isinstance(other, Fp8Linear) and (other.kind, other.impl) == (self.kind, self.impl)
        return alike and not self.engine


def norm_linears(
    norm: RMSNorm, branch: Tensor | None, stream: Tensor, linears: Sequence[nn.Module]
) -> tuple[Sequence[Tensor], Tensor]:
    """What `linears` make of the norm of branch + stream, and that sum; FP8 layers take it quantized by the norm.

    Args:
        branch: (T, d), None in the first layer. stream: (T, d).
    """
    layers = [linear for linear in linears if isinstance(linear, Fp8Linear) and linear.fuses_with(linears[0])]
    if len(layers) == len(linears):
        outputs = fp8_norm_linears(
            stream if branch is None else branch, norm.weight, norm.eps, [layer.weight for layer in layers],
            layers[0].kind, residual=None if branch is None else stream, states=[layer.state() for layer in layers],
            caches=[layer.cache() for layer in layers], impl=layers[0].impl,
        )  # fmt: skip
        return (outputs, stream) if branch is None else (outputs[:-1], outputs[-1])
    if branch is None:
        y = norm(stream)
    else:
        y, stream = norm.add(branch, stream)
    return [linear(y) for linear in linears], stream


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over packed documents, or over a cache."""

    def __init__(self, config: ModelConfig, layer: int, impl: str) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.impl = impl
        queries, keys = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj: nn.Module = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj: nn.Module = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj: nn.Module = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj: nn.Module = nn.Linear(queries, config.hidden_size, bias=False)

    def projections(self) -> tuple[nn.Module, ...]:
        """The layers that make q, k and v of the normed stream."""
        return self.q_proj, self.k_proj, self.v_proj

    def forward(
        self,
        qkv: Sequence[Tensor],
        cos: Tensor,
        sin: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        cache: PagedCache | None,
    ) -> Tensor:
        """q (T, Hq · D), k and v (T, Hkv · D); cos and sin (T, head_dim/2) → (T, d)."""
        tokens = qkv[0].shape[0]
        q, k, v = (x.view(tokens, -1, self.head_dim) for x in qkv)
        q, k = apply_rope(q, k, cos, sin, impl=self.impl)
        if cache is None:
            out = gqa_attention(q, k, v, cu_seqlens, max_seqlen, impl=self.impl)
        else:
            out = cache.attend(self.layer, q, k, v, cu_seqlens, max_seqlen, self.impl)
        y: Tensor = self.o_proj(out.view(tokens, -1))
        return y


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, impl: str) -> None:
        super().__init__()
        self.impl = impl
        self.gate_proj: nn.Module = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj: nn.Module = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj: nn.Module = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def projections(self) -> tuple[nn.Module, ...]:
        """The layers that make gate and up of the normed stream."""
        return self.gate_proj, self.up_proj

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate and up (T, F) → (T, d)."""
        down = self.down_proj
        if isinstance(down, Fp8Linear) and not down.engine:
            return fp8_swiglu_linear(
                gate, up, down.weight, down.kind, state=down.state(), cache=down.cache(), impl=down.impl
            )
        y: Tensor = down(swiglu(gate, up, impl=self.impl))
        return y


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
        cache: PagedCache | None,
    ) -> tuple[Tensor, Tensor]:
        """branch (None in the first layer) and stream (T, d) → the MLP's branch and the stream, (T, d) each."""
        qkv, stream = norm_linears(self.input_layernorm, branch, stream, self.self_attn.projections())
        attended = self.self_attn(qkv, cos, sin, cu_seqlens, max_seqlen, cache)
        (gate, up), stream = norm_linears(self.post_attention_layernorm, attended, stream, self.mlp.projections())
        return self.mlp(gate, up), stream


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, impl: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, impl) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, impl)

    def forward(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int, cache: PagedCache | None
    ) -> Tensor:
        """tokens (T,) → (T, d)."""
        branch: Tensor | None = None
        stream = F.embedding(tokens, self.embed_tokens.weight)
        for layer in self.layers:
            branch, stream = layer(branch, stream, cos, sin, cu_seqlens, max_seqlen, cache)
        assert branch is not None
        return self.norm.add(branch, stream)[0]
