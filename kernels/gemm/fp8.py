"""Transformer Engine, behind the few calls that mify makes to it; no other file imports it.

Public signatures of 2.x that are relied on (held by a stand-in module in the tests; real runs need a GPU):

    te.autocast(enabled=, recipe=, amax_reduction_group=)
    te.Linear(in_features, out_features, bias=, params_dtype=, device=)(x, is_first_microbatch=)
    te.is_fp8_available(return_reason=), te.is_fp8_block_scaling_available(return_reason=)
    recipe.DelayedScaling(margin=, fp8_format=, amax_history_len=, amax_compute_algo=)
    recipe.Float8CurrentScaling(fp8_format=), recipe.Float8BlockScaling(fp8_format=), recipe.Format.E4M3

and, to keep the state of delayed scaling in checkpoints as plain tensors (its own `get_extra_state` pickles, and newer
versions refuse to read that back), `fp8_meta["scaling_fwd" | "scaling_bwd"].{scale, amax_history}` and
`init_fp8_meta_tensors(recipe)`.

Gradients are E4M3 by default too, so that all backends compute with the same formats.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .scaling import KINDS, Kind

STATE = {"scale_fwd": 3, "history_fwd": 3, "scale_bwd": 2, "history_bwd": 2}
"""A layer's state with delayed scaling: name → quantizers. A scale is (quantizers,), a history (steps, quantizers)."""


@functools.lru_cache
def _engine() -> tuple[Any, Any]:
    """The modules transformer_engine.pytorch and transformer_engine.common.recipe."""
    return (
        importlib.import_module("transformer_engine.pytorch"),
        importlib.import_module("transformer_engine.common.recipe"),
    )


def why_not(kind: Kind | None = None) -> str:
    """Why Transformer Engine cannot be used here, for the recipe `kind` if one is given; "" where it can."""
    if importlib.util.find_spec("transformer_engine") is None:
        return "the package transformer-engine is not installed"
    if not torch.cuda.is_available():
        return "it needs a GPU, and torch finds none"
    try:
        engine, recipes = _engine()
    except (ImportError, OSError, RuntimeError) as error:
        # The core wheel without its torch extension, or one built against another torch.
        return f"it cannot be loaded ({type(error).__name__}: {error})"
    lacking = [f"transformer_engine.pytorch.{name}" for name in ("autocast", "Linear") if not hasattr(engine, name)]
    lacking += [
        f"recipe.{name}"
        for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")
        if not hasattr(recipes, name)
    ]
    if lacking:
        return f"version {version()} has no {', '.join(lacking)}"
    for asked in KINDS if kind is None else (kind,):
        check = engine.is_fp8_block_scaling_available if asked == "block" else engine.is_fp8_available
        available, reason = check(return_reason=True)
        if not available:
            return f"it refuses the recipe {asked}: {reason}"
    return ""


def version() -> str:
    """The installed version, or "unknown"."""
    for name in ("transformer-engine", "transformer-engine-torch", "transformer_engine"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def make_recipe(kind: Kind, *, history: int, margin: int) -> Any:
    """Transformer Engine's recipe of that kind."""
    _, recipes = _engine()
    e4m3 = recipes.Format.E4M3
    if kind == "delayed":
        return recipes.DelayedScaling(margin=margin, fp8_format=e4m3, amax_history_len=history, amax_compute_algo="max")
    if kind == "current":
        return recipes.Float8CurrentScaling(fp8_format=e4m3)
    return recipes.Float8BlockScaling(fp8_format=e4m3)


def autocast(recipe: Any, group: Any = None) -> AbstractContextManager[Any]:
    """Within it, the layers of `make_linear` compute in FP8. Enter it once a forward pass: on leaving it, the largest
    values are shared over `group` (a process group) and the histories of delayed scaling move on.
    """
    engine, _ = _engine()
    context: AbstractContextManager[Any] = engine.autocast(enabled=True, recipe=recipe, amax_reduction_group=group)
    return context


def make_linear(in_features: int, out_features: int) -> Any:
    """A te.Linear without storage: `run` lends it the weight."""
    engine, _ = _engine()
    return engine.Linear(in_features, out_features, bias=False, params_dtype=torch.bfloat16, device="meta")


def run(linear: Any, x: Tensor, weight: Tensor, first: bool | None) -> Tensor:
    """x Wᵀ through a te.Linear, (T, N); x (T, K).

    Args:
        weight: (N, K). It is lent for the call, since whoever shards the model swaps the parameter under us.
        first: `is_first_microbatch`: True quantizes the weight and keeps that, False takes what was kept, None neither.
    """
    linear._parameters["weight"] = weight
    # It takes token counts that are multiples of 16; zeros add nothing to a sum or a largest value.
    tokens = x.shape[0]
    y: Tensor = linear(F.pad(x, (0, 0, 0, -tokens % 16)), is_first_microbatch=first)
    return y[:tokens]


def read_state(linear: Any) -> dict[str, Tensor]:
    """The state of delayed scaling of a layer that ran, by the names of `STATE`; empty before its first pass."""
    found: dict[str, Tensor] = {}
    for direction in ("fwd", "bwd"):
        meta = linear.fp8_meta.get(f"scaling_{direction}")
        if meta is None:
            return {}
        found |= {f"scale_{direction}": meta.scale, f"history_{direction}": meta.amax_history}
    return found


def write_state(linear: Any, recipe: Any, state: dict[str, Tensor]) -> None:
    """Gives a layer, which need not have run yet, the state that `read_state` gave."""
    linear.init_fp8_meta_tensors(recipe)
    for name, tensor in read_state(linear).items():
        tensor.copy_(state[name])
