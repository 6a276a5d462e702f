"""Which backend runs an op: a pure choice, a record of what ran, and one log line per fallback.

A backend is named by its file: `gqa_triton.py` is `triton`, `gqa_ref.py` is `ref`. `choose` decides from the op, the
wish (`impl`), the device, the dtype and the shape alone, so it can be tested on any machine. The wish comes from the
argument `impl=` of the public functions, or else from the environment variable MIFY_IMPL, which names one backend for
all ops (`ref`, `triton`) or one for each (`gqa=sdpa,norm=triton`).

Without a wish ("auto") the first backend runs that can, in the order of the times measured on this GPU at about this
shape (`mify.kernels.measured`), else in the order of the op's rule, else in the order they were registered in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from . import measured

log = logging.getLogger("mify.kernels")

Shape = Mapping[str, int]


@dataclass(frozen=True)
class Device:
    """What the choice may know of a device.

    Args:
        kind: "cpu" or "cuda".
        capability: CUDA compute capability, (0, 0) on a CPU.
        missing: backend → why it cannot run here (a package that is not installed, an extension not built).
        name: of the GPU, by which measured times are looked up.
    """

    kind: str
    capability: tuple[int, int] = (0, 0)
    missing: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


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


class BackendError(ValueError):
    """A backend that was asked for, by `impl` or MIFY_IMPL, is unknown or cannot run here."""


Rule = Callable[[Device, torch.dtype, Shape], Sequence[str]]

# Where an op is registered, so that a wish may name one that has not run yet.
_MODULES = {
    "gqa": "mify.kernels.attention.gqa",
    "gqa_decode": "mify.kernels.attention.gqa_decode",
    "gqa_extend": "mify.kernels.attention.gqa_extend",
    "norm": "mify.kernels.norm.norm",
    "rope": "mify.kernels.rope.rotary",
    "glu": "mify.kernels.mlp.glu",
    "ce": "mify.kernels.loss.ce",
    "linear_ce": "mify.kernels.loss.linear_ce",
    "fim_pack": "mify.kernels.packing.fim_pack",
    "quantize": "mify.kernels.quantize.quantize",
    "norm_fp8": "mify.kernels.norm.norm_fp8",
    "glu_fp8": "mify.kernels.mlp.glu_fp8",
    "gemm": "mify.kernels.gemm.gemm",
}
_BACKENDS: dict[str, tuple[Backend, ...]] = {}
_RULES: dict[str, tuple[Rule | None, measured.Like | None]] = {}
_last: dict[str, str] = {}
_told: set[tuple[str, str]] = set()
_broken: dict[str, str] = {}
# What `resolve` chose, with the device that it was for, so that no other gets its id. To choose anew takes 7 µs.
_chosen: dict[tuple[object, ...], tuple[str, Device]] = {}
_MOST_CHOSEN = 4096


def register(op: str, *backends: Backend, prefer: Rule | None = None, like: measured.Like | None = None) -> None:
    """Declares the backends of `op`; the last must always be able to run.

    Args:
        backends: in order of preference.
        prefer: the order at a shape, where it depends on the shape; backends that it does not name come last.
        like: which measured shapes speak for a shape; None: none is looked up.
    """
    _chosen.clear()
    _BACKENDS[op] = backends
    _RULES[op] = prefer, like


def ops() -> dict[str, tuple[Backend, ...]]:
    """Every registered op with its backends, for `mify doctor`."""
    return dict(_BACKENDS)


def order(
    op: str, device: Device, dtype: torch.dtype, shape: Shape, table: Sequence[measured.Entry] | None = None
) -> tuple[str, ...]:
    """The backends of `op` as "auto" tries them. `table`: what was measured; None is the committed table."""
    _known(op)
    prefer, like = _RULES.get(op, (None, None))
    first: Sequence[str] = ()
    if like is not None and device.name:
        table = measured.load() if table is None else table
        first = measured.fastest_first(table, op, device.name, str(dtype).removeprefix("torch."), shape, like)
    ruled = prefer(device, dtype, shape) if prefer is not None else ()
    names = [backend.name for backend in _BACKENDS[op]]
    return tuple(dict.fromkeys(name for name in (*first, *ruled, *names) if name in names))


def choose(
    op: str,
    impl: str,
    device: Device,
    dtype: torch.dtype,
    shape: Shape,
    table: Sequence[measured.Entry] | None = None,
) -> str:
    """The name of the backend that runs `op`.

    Args:
        op: the op's stem: gqa, norm, rope, glu, ce, linear_ce.
        impl: "auto", a backend, or a list `op=backend,…` (an op it does not name is "auto").
        device: see `Device`.
        dtype: of the activations.
        shape: what the rules of the op look at, such as {"head_dim": 128}.
        table: what was measured; None is the committed table.

    Raises:
        ValueError: an unknown op. BackendError: an unknown backend, or one that cannot run, with the reason.
    """
    if not _known(op):
        raise ValueError(f"op {op!r} is unknown; the ops are {', '.join(_BACKENDS)}")
    wishes = parse_impl(impl)
    wish = wishes.get(op, wishes.get("*", "auto"))
    backends = {backend.name: backend for backend in _BACKENDS[op]}
    if wish == "auto":
        names = order(op, device, dtype, shape, table)
        return next(name for name in names if not _refuses(backends[name], device, dtype, shape))
    if wish not in backends:
        for other in _MODULES:
            _known(other)
        everywhere = {b.name for others in _BACKENDS.values() for b in others}
        if wish in everywhere and impl == wish:
            # A set such as MIFY_IMPL=triton covers the ops that have this backend; the others stay automatic.
            return choose(op, "auto", device, dtype, shape, table)
        raise BackendError(f"impl {wish!r} is no backend of {op!r}; it has {', '.join(backends)}")
    reason = _refuses(backends[wish], device, dtype, shape)
    if reason:
        raise BackendError(f"impl {wish!r} of {op!r} cannot run here: {reason}")
    return wish


def _refuses(backend: Backend, device: Device, dtype: torch.dtype, shape: Shape) -> str:
    return device.missing.get(backend.name, "") or backend.refuses(device, dtype, shape)


def _known(op: str) -> bool:
    """Whether there is such an op; its module is imported if that has not happened yet."""
    if op not in _BACKENDS and op in _MODULES:
        importlib.import_module(_MODULES[op])
    return op in _BACKENDS


def parse_impl(impl: str) -> dict[str, str]:
    """`"triton"` → {"*": "triton"}; `"gqa=sdpa,norm=ref"` → {"gqa": "sdpa", "norm": "ref"}."""
    wishes = {}
    for part in impl.split(","):
        op, equals, name = part.strip().partition("=")
        if not equals:
            op, name = "*", op
        if op != "*" and not _known(op):
            raise BackendError(f"impl {impl!r} names the unknown op {op!r}; the ops are {', '.join(_BACKENDS)}")
        wishes[op] = name or "auto"
    return wishes


def resolve(op: str, impl: str, tensor: torch.Tensor, shape: Shape) -> str:
    """`choose` for the device of `tensor`, with MIFY_IMPL applied; records the answer for `last_impl`."""
    impl = _applied(impl)
    device = describe(tensor.device)
    # The table counts too: the tuner puts another in its place.
    key = (op, impl, id(device), tensor.dtype, measured.load, *shape.items())
    known = _chosen.get(key)
    if known is None:
        if len(_chosen) >= _MOST_CHOSEN:
            _chosen.clear()
        known = _chosen[key] = (choose(op, impl, device, tensor.dtype, shape), device)
    name = known[0]
    _last[op] = name
    if device.kind == "cuda" and (op, name) not in _told:
        _told.add((op, name))
        log.info("%s runs on %s", op, name)
    return name


def direct() -> bool:
    """Whether an op's function may be called without the op around it: nothing is differentiated, nothing traced.

    The op itself, which torch makes of it, costs 8 µs a call; of a decode step of mify-tiny that is a fifth.
    """
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()  # dynamo traces the second not


def wished(op: str, impl: str) -> str:
    """What is asked for `op` by `impl`, or by MIFY_IMPL where that is "auto": a backend or "auto"."""
    wishes = parse_impl(_applied(impl))
    return wishes.get(op, wishes.get("*", "auto"))


def _applied(impl: str) -> str:
    return os.environ.get("MIFY_IMPL", "auto") if impl == "auto" else impl


def last_impl(op: str) -> str | None:
    """The backend that ran `op` last in this process, or None when it has not run."""
    return _last.get(op)


def describe(device: torch.device) -> Device:
    """What this machine can run on `device`."""
    return _describe(device.type, device.index)


def exclude(backend: str, reason: str) -> None:
    """Says that `backend` turned out not to run here (its package is installed but cannot be loaded)."""
    _broken[backend] = reason
    _describe.cache_clear()
    _chosen.clear()
    log.warning("%s is not used: %s", backend, reason)


# Backends of other projects → (the distribution they come in, the module that must be there).
_PACKAGES = {
    "fa2": ("flash-attn", "flash_attn"),
    "fa3": ("flash-attn-3", "flash_attn_interface"),
    "fa4": ("flash-attn-4", "flash_attn"),
}


@functools.lru_cache
def _describe(kind: str, index: int | None) -> Device:
    missing = dict(_broken)
    core = importlib.util.find_spec("mify._core")
    if core is None or core.origin is None:  # in a checkout that was not built it is but the folder of its stubs
        missing["cpu"] = "the extension mify._core is not built"
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "the package triton is not installed"
    elif kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        missing["triton"] = "it needs a GPU, or TRITON_INTERPRET=1 to be run slowly in Triton's interpreter"
    if kind != "cuda":
        return Device(kind, (0, 0), missing)
    for backend, (distribution, module) in _PACKAGES.items():
        if not _installed(distribution, module):
            missing.setdefault(backend, f"the package {distribution} is not installed")
    if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        missing["cudnn"] = "this torch has no cuDNN"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        missing["torch_flash"] = f"torch {torch.__version__} has no torch.nn.attention.varlen; 2.10 has"
    return Device("cuda", torch.cuda.get_device_capability(index), missing, torch.cuda.get_device_name(index))


def _installed(distribution: str, module: str) -> bool:
    """Whether the package is there, without importing it: that would take seconds for a backend that may not run."""
    if importlib.util.find_spec(module) is None:
        return False
    if module != "flash_attn":
        return True
    # flash-attn and flash-attn-4 share this namespace; which of them is there, only their metadata say.
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
