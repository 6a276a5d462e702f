"""FLOPs and bytes of FP8 linear layers; see `mify.kernels.cost` for how they are counted.

What must move for one decoder layer, forward and backward, beside its products:

    inputs      4 of them (attention's, attention's output, the MLP's, SwiGLU's product): both layouts
    weights     7: both layouts, once a step
    gradients   7 of what layers give: both layouts

Fused, an input is written in FP8 by the op that makes it; otherwise it is written in bf16, read, and written in FP8.
"""

from __future__ import annotations

from dataclasses import dataclass

from mify.kernels.cost import (
    BF16,
    FP8,
    FP32,
    Cost,
    ModelShape,
    linear_backward,
    matmul,
)
from mify.kernels.row_cost import quantize_fp8, rms_norm_forward, swiglu_forward


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer on T tokens: x (T, K) → (T, N)."""

    name: str
    tokens: int
    n: int
    k: int

    def products(self, *, blocks: bool = True) -> dict[str, Cost]:
        """The three FP8 products. dgrad and forward write bf16, wgrad fp32; scales of blocks are read too."""
        t, n, k = self.tokens, self.n, self.k
        padded = -(-t // 128) * 128

        def product(rows: int, columns: int, summed: int, out: int) -> Cost:
            scales = (rows + columns) * -(-summed // 128) * FP32 if blocks else 0
            return matmul(rows, columns, summed, a=FP8, b=FP8, out=out) + Cost(0, scales, 0)

        return {
            "forward": product(t, n, k, BF16),
            "dgrad": product(t, k, n, BF16),
            "wgrad": product(n, k, padded, FP32),
        }

    def in_bf16(self) -> dict[str, Cost]:
        """The same in bf16, with a bf16 weight gradient as torch writes it."""
        t, n, k = self.tokens, self.n, self.k
        both = linear_backward(t, n, k, weight_grad=BF16)
        dgrad = matmul(t, k, n)
        return {
            "forward": matmul(t, n, k),
            "dgrad": dgrad,
            "wgrad": Cost(both.flops - dgrad.flops, both.read - dgrad.read, both.written - dgrad.written),
        }


def linears(shape: ModelShape, tokens: int) -> list[Linear]:
    """The seven linear layers of one decoder layer."""
    d, f = shape.hidden_size, shape.ffn_size
    q, kv = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q),
        "gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f),
    }  # fmt: skip
    return [Linear(name, tokens, n, k) for name, (n, k) in sizes.items()]


def layer_quantization(
    shape: ModelShape, tokens: int, *, fused: bool, delayed: bool = False, weights: bool = True
) -> dict[str, Cost]:
    """What quantizing moves in one layer, forward and backward, beyond what the bf16 layer's norm and SwiGLU move.

    Args:
        fused: norm and SwiGLU write FP8 themselves; a negative figure is what they save. delayed: one scale a tensor.
        weights: count them (the first micro-batch of a step; the others take them from it).
    """
    d, f = shape.hidden_size, shape.ffn_size

    def both(features: int) -> Cost:
        return quantize_fp8(tokens, features, 2, delayed=delayed)

    def beyond(fp8: Cost, bf16: Cost) -> Cost:
        return Cost(0, fp8.read - bf16.read, fp8.written - bf16.written)

    layers = linears(shape, tokens)
    if fused:
        norm = beyond(
            rms_norm_forward(tokens, d, residual=True, fp8_layouts=2, delayed=delayed),
            rms_norm_forward(tokens, d, residual=True),
        )
        glu = beyond(swiglu_forward(tokens, f, fp8_layouts=2, delayed=delayed), swiglu_forward(tokens, f))
        inputs = 2 * norm + glu + both(layers[0].n)
    else:
        inputs = 2 * both(d) + both(f) + both(layers[0].n)
    gradients = sum((both(layer.n) for layer in layers), Cost())
    found = {"inputs": inputs, "gradients": gradients}
    if weights:
        found["weights"] = sum((quantize_fp8(layer.n, layer.k, 2, delayed=delayed) for layer in layers), Cost())
    return found


@dataclass(frozen=True, slots=True)
class Speed:
    """What a GPU reaches: FLOP/s of bf16 and FP8 products, bytes/s."""

    bf16: float
    fp8: float
    bandwidth: float


def layer_speedup(
    shape: ModelShape, tokens: int, speed: Speed, *, fused: bool, delayed: bool = False, weights: bool = True
) -> float:
    """Predicted: how many times faster one layer's linear layers are in FP8 than in bf16, forward and backward."""
    layers = linears(shape, tokens)
    in_bf16 = sum(cost.seconds(speed.bf16, speed.bandwidth) for layer in layers for cost in layer.in_bf16().values())
    products = sum(
        cost.seconds(speed.fp8, speed.bandwidth)
        for layer in layers
        for cost in layer.products(blocks=not delayed).values()
    )
    extra = layer_quantization(shape, tokens, fused=fused, delayed=delayed, weights=weights)
    return in_bf16 / (products + sum(cost.bytes for cost in extra.values()) / speed.bandwidth)
