"""Which backend runs an op: a pure choice, a record of what ran, and one log line per fallback.

A backend is named by its file: `gqa_triton.py` is `triton`, `gqa_ref.py` is `ref`. `choose` decides from the op, the
wish (`impl`), the device, the dtype and the shape alone, so it can be tested on any machine. The wish comes from the
argument `impl=` of the public functions, or else from the environment variable MIFY_IMPL, which names one backend for
all ops (`ref`, `triton`) or one for each (`gqa=sdpa,norm=triton`).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

log = logging.getLogger("mify.kernels")

Shape = Mapping[str, int]


@dataclass(frozen=True)
class Device:
    """What the choice may know of a device.

    Args:
        kind: "cpu" or "cuda".
        capability: CUDA compute capability, (0, 0) on a CPU.
        missing: backend → why it cannot run here (a package that is not installed, an extension not built).
    """

    kind: str
    capability: tuple[int, int] = (0, 0)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """One way to run an op. `refuses` says in words why it cannot, or "" when it can."""

    name: str
    refuses: Callable[[Device, torch.dtype, Shape], str]


def triton_refuses(device: Device, dtype: torch.dtype, shape: Shape) -> str:
    """Why a Triton kernel cannot take these tensors, or "": what all of them have in common."""
    if dtype == torch.float64:
        return "it has no float64"
    if device.kind == "cuda" and device.capability < (8, 0):
        return f"it is for compute capability 8.0 and above, this GPU has {'.'.join(map(str, device.capability))}"
    return ""


_BACKENDS: dict[str, tuple[Backend, ...]] = {}
_last: dict[str, str] = {}
_told: set[tuple[str, str]] = set()


def register(op: str, *backends: Backend) -> None:
    """Declares the backends of `op` in order of preference; the last must always be able to run."""
    _BACKENDS[op] = backends


def ops() -> dict[str, tuple[Backend, ...]]:
    """Every registered op with its backends, for `mify doctor`."""
    return dict(_BACKENDS)


def choose(op: str, impl: str, device: Device, dtype: torch.dtype, shape: Shape) -> str:
    """The name of the backend that runs `op`.

    Args:
        op: the op's stem: gqa, norm, rope, glu, ce, linear_ce.
        impl: "auto", a backend, or a list `op=backend,…` (an op it does not name is "auto").
        device: see `Device`.
        dtype: of the activations.
        shape: what the rules of the op look at, such as {"head_dim": 128}.

    Raises:
        ValueError: an unknown op or backend, or a named backend that cannot run, with the reason.
    """
    if op not in _BACKENDS:
        raise ValueError(f"op {op!r} is unknown; the ops are {', '.join(_BACKENDS)}")
    wish = parse_impl(impl).get(op, parse_impl(impl).get("*", "auto"))
    reasons = {}
    for backend in _BACKENDS[op]:
        reason = device.missing.get(backend.name, "") or backend.refuses(device, dtype, shape)
        if wish in ("auto", backend.name) and not reason:
            return backend.name
        reasons[backend.name] = reason
    if wish not in reasons:
        everywhere = {b.name for backends in _BACKENDS.values() for b in backends}
        if wish in everywhere and impl == wish:
            # A set such as MIFY_IMPL=triton covers the ops that have this backend; the others stay automatic.
            return choose(op, "auto", device, dtype, shape)
        raise ValueError(f"impl {wish!r} is no backend of {op!r}; it has {', '.join(reasons)}")
    raise ValueError(f"impl {wish!r} of {op!r} cannot run here: {reasons[wish]}")


def parse_impl(impl: str) -> dict[str, str]:
    """`"triton"` → {"*": "triton"}; `"gqa=sdpa,norm=ref"` → {"gqa": "sdpa", "norm": "ref"}."""
    wishes = {}
    for part in impl.split(","):
        op, equals, name = part.strip().partition("=")
        if not equals:
            op, name = "*", op
        if op != "*" and op not in _BACKENDS:
            raise ValueError(f"impl {impl!r} names the unknown op {op!r}; the ops are {', '.join(_BACKENDS)}")
        wishes[op] = name or "auto"
    return wishes


def resolve(op: str, impl: str, tensor: torch.Tensor, shape: Shape) -> str:
    """`choose` for the device of `tensor`, with MIFY_IMPL applied; records the answer for `last_impl`."""
    if impl == "auto":
        impl = os.environ.get("MIFY_IMPL", "auto")
    device = describe(tensor.device)
    name = choose(op, impl, device, tensor.dtype, shape)
    _last[op] = name
    if device.kind == "cuda" and (op, name) not in _told:
        _told.add((op, name))
        log.info("%s runs on %s", op, name)
    return name


def last_impl(op: str) -> str | None:
    """The backend that ran `op` last in this process, or None when it has not run."""
    return _last.get(op)


def describe(device: torch.device) -> Device:
    """What this machine can run on `device`."""
    return _describe(device.type, device.index)


@functools.lru_cache
def _describe(kind: str, index: int | None) -> Device:
    missing = {}
    if importlib.util.find_spec("mify._core") is None:
        missing["cpu"] = "the extension mify._core is not built"
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "the package triton is not installed"
    elif kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        missing["triton"] = "it needs a GPU, or TRITON_INTERPRET=1 to be run slowly in Triton's interpreter"
    if kind == "cuda":
        return Device("cuda", torch.cuda.get_device_capability(index), missing)
    return Device(kind, (0, 0), missing)
