"""The backends of training attention as candidates of the tuner: at the suite's shapes, forward and backward together.

The entries are of the op `gqa` itself, so the dispatcher takes the backend that was fastest on this GPU at about this
shape (`mify.kernels.measured`), whoever wrote it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mify.bench.kernel_cases import document_lengths
from mify.bench.timing import random_like_activations

# (case of `mify bench kernels`, tokens, mean length of a document, query heads, key heads)
SHAPES = (
    ("gqa-packed-512-20-4", 32_768, 512, 20, 4),
    ("gqa-packed-2k-20-4", 65_536, 2048, 20, 4),
    ("gqa-packed-512-32-8", 32_768, 512, 32, 8),
    ("gqa-packed-1k-32-8", 32_768, 1024, 32, 8),
    ("gqa-packed-2k-32-8", 65_536, 2048, 32, 8),
    ("gqa-long-8k-20-4", 32_768, 8192, 20, 4),
    ("gqa-long-16k-32-8", 32_768, 16_384, 32, 8),
)
TOO_SLOW = "ref"  # plain torch holds whole score matrices


@dataclass(frozen=True)
class Attention:
    """One shape on one device.

    Args:
        case: of `mify bench kernels`. lengths: of the documents. heads, kv_heads: their number, of `head_dim` each.
    """

    case: str
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    device: str
    dtype: Any

    def inputs(self) -> tuple[Any, Any, Any, Any]:
        """q (T, Hq, D), k and v (T, Hkv, D) that ask for gradients, and cu_seqlens (documents + 1,) int32."""
        import torch

        bounds = torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32, device=self.device)
        tokens = sum(self.lengths)
        q, k, v = (
            random_like_activations(
                tokens, heads, self.head_dim, dtype=self.dtype, device=self.device, seed=seed
            ).requires_grad_()
            for seed, heads in enumerate((self.heads, self.kv_heads, self.kv_heads))
        )
        return q, k, v, bounds

    def shape(self) -> dict[str, int]:
        """What the dispatcher is told of a call."""
        from mify.kernels.attention import gqa

        q, k, _, bounds = self.inputs()
        return gqa.shape_of(q, k, max(self.lengths), bounds.tolist(), True, 0, False, eager=self.device == "cuda")

    def backends(self) -> tuple[str, ...]:
        """Those that run here, in the order that the rules give."""
        return runnable("gqa", self.device, self.dtype, self.shape())

    def make(self) -> Callable[[], tuple[Any, ...]]:
        """A call that returns the output and its gradients."""
        import torch

        from mify.kernels import gqa_attention

        q, k, v, bounds = self.inputs()
        grad = torch.ones_like(q)

        def call() -> tuple[Any, ...]:
            out = gqa_attention(q, k, v, bounds, max(self.lengths))
            return out.detach(), *torch.autograd.grad(out, (q, k, v), grad)

        return call


def runnable(op: str, device: str, dtype: Any, shape: Mapping[str, int]) -> tuple[str, ...]:
    """The backends of an op that run here, in the order that the rules give; without the slow reference."""
    import torch

    from mify.kernels import dispatch

    described, names = dispatch.describe(torch.device(device)), []
    for name in dispatch.order(op, described, dtype, shape, ()):
        try:
            names.append(dispatch.choose(op, f"{op}={name}", described, dtype, shape, ()))
        except ValueError:
            continue  # it says why in `mify doctor`
    return tuple(name for name in names if name != TOO_SLOW)


def attention_shapes(device: str, dtype: Any, *, scale: int = 1) -> list[Attention]:
    """The shapes of the suite, tokens and heads divided by `scale`."""
    found = []
    for case, tokens, mean, heads, kv_heads in SHAPES:
        typical = max(16, mean // scale)
        total = max(typical, tokens // scale)
        equal = case.startswith("gqa-long")
        lengths = [typical] * (total // typical) if equal else document_lengths(total, typical, seed=0)
        group = heads // kv_heads
        kv = max(1, kv_heads // scale)
        found.append(Attention(case, tuple(lengths), kv * group, kv, 128, device, dtype))
    return found
