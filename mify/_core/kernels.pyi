"""The CPU kernels over raw pointers; strides are in elements. Call them through mify.kernels, which checks."""

from __future__ import annotations

Rows = tuple[int, int]
"""(pointer, stride of a row)."""
Heads = tuple[int, int, int]
"""(pointer, stride of a token, stride of a head)."""

def gqa_forward(
    q: Heads,
    k: Heads,
    v: Heads,
    out: Heads,
    lse: int,
    bounds: int,
    documents: int,
    shape: tuple[int, int, int],
    causal: bool,
    window: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def gqa_backward(
    grad: Heads,
    q: Heads,
    k: Heads,
    v: Heads,
    lse: int,
    dq: Heads,
    dk: Heads,
    dv: Heads,
    bounds: int,
    documents: int,
    shape: tuple[int, int, int],
    causal: bool,
    window: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def gqa_paged(
    q: Heads,
    out: Heads,
    keys: tuple[int, int, int, int],
    values: tuple[int, int, int, int],
    fp8: bool,
    bounds: int,
    lengths: int,
    table: tuple[int, int],
    counts: tuple[int, int, int, int],
    shape: tuple[int, int, int],
    key_scale: int,
    value_scale: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def norm_forward(
    x: Rows,
    residual: Rows,
    total: Rows,
    weight: int,
    y: Rows,
    inverse: int,
    eps: float,
    count: int,
    size: int,
    threads: int,
    /,
) -> None: ...
def norm_backward(
    grad: Rows,
    grad_total: Rows,
    x: Rows,
    weight: int,
    inverse: int,
    dx: Rows,
    dweight: int,
    count: int,
    size: int,
    threads: int,
    /,
) -> None: ...
def glu_forward(gate: Rows, up: Rows, y: Rows, count: int, size: int, threads: int, /) -> None: ...
def glu_backward(
    grad: Rows, gate: Rows, up: Rows, dgate: Rows, dup: Rows, count: int, size: int, threads: int, /
) -> None: ...
def rotary(
    x: Heads, y: int, cos: int, sin: int, inverse: bool, tokens: int, heads: int, half: int, threads: int, /
) -> None: ...
def softmax_loss(
    logits: Rows,
    labels: int,
    loss: int,
    count: int,
    classes: int,
    z_loss: float,
    smoothing: float,
    gradient: bool,
    threads: int,
    /,
) -> None: ...
def unpack_rows(threads: int, **arguments: int) -> None: ...
def pack_spans(threads: int, **arguments: int | list[int]) -> None: ...
