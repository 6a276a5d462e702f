"""FLOPs and bytes of the row-wise ops, the loss and the optimizer; see `mify.kernels.cost` for how they are counted."""

from __future__ import annotations

from .cost import BF16, FP8, FP32, INT64, Cost


def rms_norm_forward(
    tokens: int,
    features: int,
    *,
    element: int = BF16,
    residual: bool = False,
    fp8_layouts: int = 0,
    delayed: bool = False,
) -> Cost:
    """RMSNorm, optionally of x + residual, the sum written too.

    Args:
        fp8_layouts: 0 writes the result in `element`; 1 writes FP8 data with a scale per 128 features; 2 also its
            transpose with a scale per 128 tokens, the tokens padded to a multiple of 128.
        delayed: one scale for the whole tensor instead, which is not written.
    """
    size = tokens * features
    read = size * element * (2 if residual else 1) + features * element
    written = _epilogue(tokens, features, element, fp8_layouts, delayed) + tokens * FP32
    return Cost(0, read, written + (size * element if residual else 0))


def rms_norm_backward(tokens: int, features: int, *, element: int = BF16, residual: bool = False) -> Cost:
    """Reads x, dy, the weight and 1/rms (and the gradient of the sum), writes dx and the weight's gradient in fp32."""
    size = tokens * features * element
    read = size * (3 if residual else 2) + features * element + tokens * FP32
    return Cost(0, read, size + features * FP32)


def rope(tokens: int, query_heads: int, kv_heads: int, head_dim: int, *, element: int = BF16) -> Cost:
    """Rotation of q and k in one pass, forward or backward: each read and written once, with fp32 cosines and sines."""
    size = tokens * (query_heads + kv_heads) * head_dim * element
    return Cost(0, size + tokens * head_dim * FP32, size)


def swiglu_forward(
    tokens: int, features: int, *, element: int = BF16, fp8_layouts: int = 0, delayed: bool = False
) -> Cost:
    """silu(gate) · up; `fp8_layouts` and `delayed` as in `rms_norm_forward`."""
    written = _epilogue(tokens, features, element, fp8_layouts, delayed)
    return Cost(0, 2 * tokens * features * element, written)


def quantize_fp8(tokens: int, features: int, layouts: int, *, element: int = BF16, delayed: bool = False) -> Cost:
    """A matrix read once and written in FP8 in one layout or two; `delayed` as in `rms_norm_forward`."""
    return Cost(0, tokens * features * element, _epilogue(tokens, features, element, layouts, delayed))


def swiglu_backward(tokens: int, features: int, *, element: int = BF16) -> Cost:
    """Reads gate, up and the gradient, writes both gradients."""
    size = tokens * features * element
    return Cost(0, 3 * size, 2 * size)


def _epilogue(tokens: int, features: int, element: int, fp8_layouts: int, delayed: bool) -> int:
    if fp8_layouts == 0:
        return tokens * features * element
    padded = -(-tokens // 128) * 128
    written = tokens * features * FP8 + (padded * features * FP8 if fp8_layouts == 2 else 0)
    if not delayed:
        written += tokens * -(-features // 128) * FP32 + (padded // 128 * features * FP32 if fp8_layouts == 2 else 0)
    return written


def cross_entropy_forward(tokens: int, vocabulary: int, *, element: int = BF16) -> Cost:
    """Loss of given logits: reads logits and labels, writes a loss and a log-sum-exp a row."""
    return Cost(0, tokens * vocabulary * element + tokens * INT64, 2 * tokens * FP32)


def cross_entropy_backward(tokens: int, vocabulary: int, *, element: int = BF16) -> Cost:
    """Reads the logits again, writes their gradient."""
    size = tokens * vocabulary * element
    return Cost(0, size + tokens * (INT64 + 2 * FP32), size)


def linear_cross_entropy(
    labelled: int, features: int, vocabulary: int, *, element: int = BF16, weight_grad: int = FP32
) -> Cost:
    """Output matrix, loss and both gradients in one pass over rows that carry a label, forward and backward together.

    The three products are 6·M·H·V FLOPs. Bytes: x and dx once, the matrix once for the logits and once for dx, its
    gradient once; logits stay on chip in the ideal that this counts (a chunked implementation moves them, and more).
    """
    x, weight = labelled * features * element, features * vocabulary * element
    return Cost(
        6 * labelled * features * vocabulary,
        2 * x + 2 * weight + labelled * INT64,
        x + features * vocabulary * weight_grad + labelled * FP32,
    )


def adamw(parameters: int, *, master: int = FP32, gradient: int = FP32, moment: int = FP32, compute: int = 0) -> Cost:
    """One fused AdamW step: parameter and both moments read and written, gradient read, a `compute` copy written."""
    state = master + 2 * moment
    return Cost(0, parameters * (state + gradient), parameters * (state + compute))
