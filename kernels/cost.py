"""FLOPs and bytes of every op and of the whole model: what benches compute rooflines from, and `mify plan` plans with.

The row-wise ops, the loss and the optimizer stand in `row_cost`, those of a part in its folder (`X_cost`).

Counting rules, the same everywhere:

- A multiply-add of a matrix product is two FLOPs. Element-wise work counts nothing, as in torch's FlopCounterMode.
- Attention counts the query-key pairs that are *visible* (causal, inside one document, inside the window), not the
  square.
- `Cost.read` and `Cost.written` are the bytes that must cross device memory at least once, every input read once and
  every output written once: the floor that a fused kernel can reach, not what an unfused one moves.
- Backward of attention is 2 × forward in *model* FLOPs (the four products dV, dP, dQ, dK); a flash kernel also
  recomputes the scores, 2.5 × in all. `recomputed=True` counts what is executed, the default what MFU is measured by.

Nothing here imports torch, and nothing is measured here: a time computed from these figures is a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

BF16, FP32, FP8, INT32, INT64 = 2, 4, 1, 4, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of matrix products, and bytes read from and written to device memory."""

    flops: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """FLOPs per byte; infinite where nothing is moved."""
        return self.flops / self.bytes if self.bytes else float("inf")

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.read + other.read, self.written + other.written)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.read * times, self.written * times)

    __rmul__ = __mul__

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: the longer of computing and moving, perfectly overlapped."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


class ModelShape(Protocol):
    """What the model-level functions read; `mify.config.ModelConfig` is one."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_query_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tie_embeddings(self) -> bool: ...


def visible_pairs(lengths: Iterable[int], *, causal: bool = True, window: int = 0) -> int:
    """Query-key pairs that attention computes over packed documents.

    Args:
        lengths: tokens of each document; zero is legal.
        window: keys a query sees at most, itself included; 0 for no window. Without `causal` it reaches to both sides.
    """
    pairs = 0
    for length in lengths:
        if length < 0:
            raise ValueError(f"a document's length is {length}; lengths are at least 0")
        reach = min(window, length) if window else length
        # Query i sees min(i + 1, reach) keys: the first `reach` queries a triangle, the rest `reach` each.
        triangle = reach * (reach + 1) // 2 + (length - reach) * reach
        pairs += triangle if causal else 2 * triangle - length
    return pairs


def matmul(m: int, n: int, k: int, *, a: int = BF16, b: int = BF16, out: int = BF16) -> Cost:
    """(m, k) @ (k, n); `a`, `b` and `out` are bytes an element."""
    return Cost(2 * m * n * k, m * k * a + k * n * b, m * n * out)


def linear_backward(m: int, n: int, k: int, *, a: int = BF16, b: int = BF16, weight_grad: int = FP32) -> Cost:
    """Backward of x (m, k) @ W (k, n): dx = dy Wᵀ and dW = xᵀ dy, dy read by both."""
    return matmul(m, k, n, a=a, b=b, out=a) + matmul(k, n, m, a=a, b=a, out=weight_grad)


def gqa_forward(
    pairs: int, tokens: int, query_heads: int, kv_heads: int, head_dim: int, *, element: int = BF16
) -> Cost:
    """Training attention: QKᵀ and PV over `pairs`; reads q, k, v, writes out and the fp32 log-sum-exp."""
    q = tokens * query_heads * head_dim * element
    kv = 2 * tokens * kv_heads * head_dim * element
    return Cost(4 * pairs * query_heads * head_dim, q + kv, q + tokens * query_heads * FP32)


def gqa_backward(
    pairs: int,
    tokens: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    element: int = BF16,
    recomputed: bool = False,
) -> Cost:
    """Its backward: dV, dP, dQ, dK (and the scores again where `recomputed`); reads q, k, v, out, dout and the
    statistics.
    """
    q = tokens * query_heads * head_dim * element
    kv = 2 * tokens * kv_heads * head_dim * element
    statistics = tokens * query_heads * FP32
    return Cost((10 if recomputed else 8) * pairs * query_heads * head_dim, 3 * q + kv + statistics, q + kv)


def gqa_decode(
    key_lengths: Iterable[int],
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    kv_element: int = BF16,
    element: int = BF16,
    page_size: int = 0,
) -> Cost:
    """One query a sequence against its cached keys and values, each read once for all heads of its group.

    Args:
        key_lengths: keys of each sequence.
        page_size: of a paged cache, whose table is read too; 0 for a contiguous one.
    """
    lengths = list(key_lengths)
    keys = sum(lengths)
    q = len(lengths) * query_heads * head_dim * element
    table = sum(-(-length // page_size) for length in lengths) * INT32 if page_size else 0
    kv = 2 * keys * kv_heads * head_dim * kv_element
    return Cost(4 * keys * query_heads * head_dim, q + kv + table + len(lengths) * INT32, q)


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many parameters stand where. The head counts 0 where it is tied to the embedding."""

    embedding: int
    attention: int
    ffn: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.ffn + self.norms + self.head


def parameters(shape: ModelShape) -> Parameters:
    """The parameters of a model by part."""
    d, layers = shape.hidden_size, shape.num_layers
    attention = 2 * d * (shape.num_query_heads + shape.num_kv_heads) * shape.head_dim
    embedding = shape.vocab_size * d
    return Parameters(
        embedding=embedding,
        attention=layers * attention,
        ffn=layers * 3 * d * shape.ffn_size,
        norms=(2 * layers + 1) * d,
        head=0 if shape.tie_embeddings else embedding,
    )


def matmul_parameters(shape: ModelShape) -> int:
    """Parameters that every token is multiplied with: the N of 6·N·tokens. The embedding is looked up, not multiplied;
    the head is multiplied even where it shares the embedding's matrix.
    """
    counts = parameters(shape)
    return counts.attention + counts.ffn + shape.vocab_size * shape.hidden_size


@dataclass(frozen=True, slots=True)
class Workload:
    """What a step computes on: tokens, the pairs attention sees, and the tokens that carry a loss."""

    tokens: int
    pairs: int
    labelled: int

    @classmethod
    def documents(cls, lengths: Iterable[int], *, window: int = 0, labelled: int | None = None) -> Workload:
        """Packed documents of these lengths; every token carries a loss unless `labelled` says how many do."""
        lengths = list(lengths)
        tokens = sum(lengths)
        return cls(tokens, visible_pairs(lengths, window=window), tokens if labelled is None else labelled)

    @classmethod
    def uniform(cls, tokens: int, document: int, *, window: int = 0) -> Workload:
        """`tokens` tokens in documents of `document` tokens each, the last one shorter."""
        if document < 1:
            raise ValueError(f"document is {document}; a document has at least 1 token")
        whole, rest = divmod(tokens, document)
        pairs = whole * visible_pairs([document], window=window) + visible_pairs([rest], window=window)
        return cls(tokens, pairs, tokens)


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs of one forward and backward pass by part."""

    linear_forward: int
    head_forward: int
    attention_forward: int
    linear_backward: int
    head_backward: int
    attention_backward: int

    @property
    def forward(self) -> int:
        return self.linear_forward + self.head_forward + self.attention_forward

    @property
    def backward(self) -> int:
        return self.linear_backward + self.head_backward + self.attention_backward

    @property
    def total(self) -> int:
        return self.forward + self.backward


def model_flops(shape: ModelShape, work: Workload, *, recomputed: bool = False) -> ModelFlops:
    """FLOPs of one training pass: 6·N·tokens plus 12·pairs·heads·head_dim a layer, the head only over labelled tokens.

    Args:
        recomputed: count the scores that a flash backward computes again too (14·pairs·heads·head_dim a layer). MFU is
            quoted without it.
    """
    counts = parameters(shape)
    linear = 2 * (counts.attention + counts.ffn) * work.tokens
    head = 2 * shape.vocab_size * shape.hidden_size * work.labelled
    attention = shape.num_layers * 4 * work.pairs * shape.num_query_heads * shape.head_dim
    return ModelFlops(
        linear, head, attention, 2 * linear, 2 * head, attention * 5 // 2 if recomputed else 2 * attention
    )


def flops_per_token(shape: ModelShape, document: int) -> float:
    """Training FLOPs a token, forward and backward, in packed documents of `document` tokens."""
    return model_flops(shape, Workload.uniform(document, document)).total / document


def decode_step(
    shape: ModelShape, batch: int, keys: int, *, weight_element: int = BF16, kv_element: int = BF16
) -> Cost:
    """One token of `batch` sequences with `keys` cached keys each: every weight is read once, every cache entry
    once.
    """
    counts = parameters(shape)
    head = shape.vocab_size * shape.hidden_size
    weights = counts.attention + counts.ffn
    attention = gqa_decode(
        [keys] * batch, shape.num_query_heads, shape.num_kv_heads, shape.head_dim, kv_element=kv_element
    )
    new_keys = batch * 2 * shape.num_kv_heads * shape.head_dim * kv_element
    linear = Cost(
        2 * (weights + head) * batch, weights * weight_element + head * BF16 + batch * shape.hidden_size * BF16, 0
    )
    return linear + shape.num_layers * (attention + Cost(0, 0, new_keys))


def kv_cache_bytes(shape: ModelShape, tokens: int, *, kv_element: int = BF16) -> int:
    """Keys and values of `tokens` tokens in all layers."""
    return tokens * shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim * kv_element


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes an element of what training keeps for each parameter."""

    master: int = FP32
    gradient: int = FP32
    moments: int = 2 * FP32
    compute: int = BF16

    @property
    def kept(self) -> int:
        """Bytes a parameter that live from step to step or through the backward pass (the compute copy is
        transient).
        """
        return self.master + self.gradient + self.moments


def activation_bytes(
    shape: ModelShape, tokens: int, *, checkpointing: bool = False, element: int = BF16, loss_chunk: int = 4096
) -> int:
    """Bytes that forward keeps for backward on one device, with mify's fused ops.

    A layer keeps, a token: both norms' inputs and outputs (4 d), q and out (2 Hq D; out is also what the output
    projection reads), k and v (2 Hkv D), gate, up and their product (3 F), the fp32 log-sum-exp (Hq) and both 1/rms.
    With `checkpointing` every layer keeps its input alone (d) and one layer at a time holds all of it while its
    backward runs. Besides: the final norm's input and output, its gradient, and a chunk of `loss_chunk` rows of logits
    and their gradient.
    """
    d = shape.hidden_size
    inner = 2 * shape.num_query_heads * shape.head_dim + 2 * shape.num_kv_heads * shape.head_dim + 3 * shape.ffn_size
    layer = tokens * ((4 * d + inner) * element + (shape.num_query_heads + 2) * FP32)
    layers = shape.num_layers * tokens * d * element + layer if checkpointing else shape.num_layers * layer
    top = tokens * (3 * d * element + FP32)
    logits = 2 * min(loss_chunk, tokens) * shape.vocab_size * element
    return layers + top + logits
