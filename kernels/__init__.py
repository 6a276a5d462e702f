"""The kernels: functions and ops; modules live in mify.layers.

Each op is a stem: `attention/gqa.py` is its contract, checks and gradient, `gqa_ref.py` the readable twin in plain
torch, `gqa_triton.py`, `gqa_cpu.py` … the backends, among which `dispatch` chooses (`impl=`, MIFY_IMPL);
`last_impl("gqa")` says which one ran. C++ and CUDA lie in csrc/ under the same stem.

Importing this package imports nothing; a function is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mify.kernels.attention.gqa import gqa_attention
    from mify.kernels.attention.gqa_decode import gqa_decode
    from mify.kernels.attention.gqa_extend import gqa_extend
    from mify.kernels.dispatch import last_impl
    from mify.kernels.loss.ce import cross_entropy
    from mify.kernels.loss.linear_ce import linear_cross_entropy
    from mify.kernels.loss.linear_logp import linear_log_probs
    from mify.kernels.mlp.glu import swiglu
    from mify.kernels.norm.norm import add_rms_norm, rms_norm
    from mify.kernels.packing.fim_pack import pack_spans, unpack_rows
    from mify.kernels.rope.rotary import apply_rope

__all__ = [
    "add_rms_norm",
    "apply_rope",
    "cross_entropy",
    "gqa_attention",
    "gqa_decode",
    "gqa_extend",
    "last_impl",
    "linear_cross_entropy",
    "linear_log_probs",
    "pack_spans",
    "rms_norm",
    "swiglu",
    "unpack_rows",
]

_LAZY = {
    "add_rms_norm": "mify.kernels.norm.norm",
    "apply_rope": "mify.kernels.rope.rotary",
    "cross_entropy": "mify.kernels.loss.ce",
    "gqa_attention": "mify.kernels.attention.gqa",
    "gqa_decode": "mify.kernels.attention.gqa_decode",
    "gqa_extend": "mify.kernels.attention.gqa_extend",
    "last_impl": "mify.kernels.dispatch",
    "linear_cross_entropy": "mify.kernels.loss.linear_ce",
    "linear_log_probs": "mify.kernels.loss.linear_logp",
    "pack_spans": "mify.kernels.packing.fim_pack",
    "rms_norm": "mify.kernels.norm.norm",
    "swiglu": "mify.kernels.mlp.glu",
    "unpack_rows": "mify.kernels.packing.fim_pack",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mify.kernels' has no attribute {name!r}")
