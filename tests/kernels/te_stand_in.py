"""A stand-in for Transformer Engine, NOT the real thing: its public signatures (2.20), with plain arithmetic inside.

It holds mify's calls to those signatures on machines without a GPU. What it proves: names, arguments, the order of
calls, what is saved and restored. What it cannot: that the real library computes, or that its signatures stay.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from typing import Any

import torch
from torch import nn

CALLS: list[tuple[str, dict[str, Any]]] = []
"""What was called, in order."""


class Format(enum.Enum):
    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"


@dataclasses.dataclass
class DelayedScaling:
    margin: int = 0
    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1024
    amax_compute_algo: Any = "max"
    scaling_factor_compute_algo: Any = None
    reduce_amax: bool = True
    fp8_dpa: bool = False
    fp8_mha: bool = False
    backward_override: str | None = None


@dataclasses.dataclass
class Float8CurrentScaling:
    fp8_format: Format = Format.HYBRID
    backward_override: str | None = None


@dataclasses.dataclass
class Float8BlockScaling:
    fp8_format: Format = Format.E4M3
    x_block_scaling_dim: int = 1
    w_block_scaling_dim: int = 2
    grad_block_scaling_dim: int = 1


_active: list[Any] = []


class autocast:
    def __init__(
        self,
        enabled: bool = True,
        calibrating: bool = False,
        recipe: Any = None,
        amax_reduction_group: Any = None,
        _graph: bool = False,
    ) -> None:
        self.enabled, self.recipe = enabled, recipe
        CALLS.append(("autocast", {"enabled": enabled, "recipe": recipe, "group": amax_reduction_group}))

    def __enter__(self) -> None:
        assert not _active, "entered twice"
        _active.append(self.recipe)

    def __exit__(self, *reason: object) -> None:
        _active.pop()
        CALLS.append(("autocast left", {}))


class _Meta:
    def __init__(self, count: int, length: int) -> None:
        self.scale = torch.ones(count)
        self.amax_history = torch.zeros(length, count)


class Linear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__()
        assert not bias
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        self.fp8_meta: dict[str, Any] = {}

    def init_fp8_meta_tensors(self, recipe: Any) -> None:
        if isinstance(recipe, DelayedScaling) and "scaling_fwd" not in self.fp8_meta:
            self.fp8_meta["scaling_fwd"] = _Meta(3, recipe.amax_history_len)
            self.fp8_meta["scaling_bwd"] = _Meta(2, recipe.amax_history_len)

    def forward(
        self,
        inp: torch.Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> torch.Tensor:
        assert not self.weight.is_meta, "the weight was not lent"
        assert inp.shape[0] % 16 == 0, "both dimensions must be divisible by 16"
        CALLS.append(("linear", {"first": is_first_microbatch, "in autocast": bool(_active), "rows": inp.shape[0]}))
        if _active:
            self.init_fp8_meta_tensors(_active[0])
        if _active and isinstance(_active[0], DelayedScaling) and torch.is_grad_enabled():
            meta = self.fp8_meta["scaling_fwd"]
            meta.amax_history.copy_(meta.amax_history.roll(1, 0))
            meta.amax_history[0, 0] = inp.detach().abs().amax()
            meta.scale[0] = 448 / meta.amax_history[:, 0].amax()  # theirs multiplies where ours divides
        return inp @ self.weight.t()


def is_fp8_available(return_reason: bool = False) -> Any:
    return (True, "") if return_reason else True


def is_fp8_block_scaling_available(return_reason: bool = False) -> Any:
    return (False, "FP8 block scaled GEMM requires compute capability 9.0.") if return_reason else False


def install(monkeypatch: Any) -> None:
    """Puts the stand-in where `import transformer_engine` finds it, and says that there is a GPU."""
    names = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.common",
             "transformer_engine.common.recipe")  # fmt: skip
    modules = {name: types.ModuleType(name) for name in names}
    here = sys.modules[__name__]
    for name in ("Linear", "autocast", "is_fp8_available", "is_fp8_block_scaling_available"):
        setattr(modules["transformer_engine.pytorch"], name, getattr(here, name))
    for name in ("Format", "DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling"):
        setattr(modules["transformer_engine.common.recipe"], name, getattr(here, name))
    for name, module in modules.items():
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    CALLS.clear()
    _active.clear()
