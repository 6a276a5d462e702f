"""Quantized weights from a checkpoint in one pass, with what it cost: the error of every layer, held-out bits per byte.

    fp8        E4M3, a scale a row                   awq8   int8-group after activation-aware scaling
    fp8-block  E4M3, a scale for 128×128             awq4   int4 after activation-aware scaling
    fp8-weight E4M3 weights alone                    int8   int8 weights alone, a scale a row

With calibration text, those of FP8 and int8 round with error feedback (`feedback`); without, to the nearest.

The folder that is written is one that engines load (`mify.export.quantized`). Memory: the largest tensor and what
stands for it; awq8 and awq4, and any method that is given calibration text, hold one layer and the calibration tokens'
hidden states instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mify.errors import MifyError
from mify.export.model_card import CardFacts
from mify.export.quantized import export_quantized, is_linear, scheme_of
from mify.export.weights import Weights, tensor_shapes
from mify.files import write_json
from mify.quantization.awq import AwqWeights
from mify.quantization.layers import LayerPass
from mify.quantization.scheme import Scheme

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.model import Model

FORMAT, VERSION = "mify-quantization", 1
REPORT = "quantization.json"
METHODS = {
    "fp8": "fp8", "fp8-weight": "fp8-weight", "fp8-block": "fp8-block", "int8": "int8-weight", "awq8": "int8-group",
    "awq4": "int4",
}  # fmt: skip
"""Method → the scheme it stores."""
CALIBRATED = ("awq8", "awq4")


@dataclass(frozen=True, slots=True)
class LayerError:
    """What rounding did to one linear layer, as shares of the norm of what is right.

    Args:
        weight: ‖Q(W) − W‖ / ‖W‖, of the weight that was rounded (with AWQ, the scaled one).
        output: ‖x·(Q(W) − W)ᵀ‖ / ‖x·Wᵀ‖ over calibration tokens; None without calibration text.
    """

    name: str
    weight: float
    output: float | None


def quantize(
    weights: Weights,
    out: str | os.PathLike[str],
    method: str,
    *,
    sequences: Sequence[Sequence[int]] | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    facts: CardFacts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the folder `out` with quantized weights and `quantization.json`, and returns that report.

    Args:
        method: one of `METHODS`.
        sequences: calibration token ids; awq8 and awq4 need them, the others round better with them.
        group_size: columns that share a scale, where the method has groups; None: the most of 128, 64 and 32 that fit.
        dtype: of what is not quantized. facts: for the model card.
        progress: progress(layers done, layers).

    Raises:
        MifyError: an unknown method, no or too little calibration text, a width that no group divides, weights that
            are not finite (with the tensor's name).
    """
    if method not in METHODS:
        raise MifyError(f"unknown method {method!r}", f"give {', '.join(METHODS)}")
    if method in CALIBRATED and sequences is None:
        raise MifyError(f"{method} scales by activations and has no calibration text", "give --calibration")
    started = time.perf_counter()
    scheme = scheme_of(METHODS[method], weights.config, group_size)
    layers: LayerPass | None = None
    source = weights
    if method in CALIBRATED and sequences is not None:
        source = awq = AwqWeights(weights, sequences, scheme)
        layers = awq.layers
    elif sequences is not None:
        layers = LayerPass(weights, sequences, gram=True)
    errors: list[LayerError] = []
    count = sum(map(is_linear, tensor_shapes(weights.config)))

    def gram_of(name: str) -> Tensor | None:
        if layers is None or method in CALIBRATED:
            return None
        while (seen := layers.inputs_of(name)) is None:
            layers.advance()
        return seen.gram

    def observe(name: str, weight: Tensor, parts: dict[str, Tensor]) -> None:
        errors.append(_error(name, weight.float(), scheme.decode(parts), layers, source))
        if progress is not None:
            progress(len(errors), count)

    folder = export_quantized(
        source,
        out,
        scheme.kind,
        group_size=scheme.group_size or None,
        dtype=dtype,
        facts=facts,
        observe=observe,
        gram_of=gram_of,
    )
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "method": method,
        "scheme": scheme.kind,
        "group_size": scheme.group_size or None,
        "source": Path(weights.source).name,
        "calibration_tokens": sum(map(len, sequences)) if sequences is not None else 0,
        "bytes": stored,
        "bytes_in_bf16": 2 * weights.config.num_parameters(),
        "layers": [
            {"name": error.name, "weight_error": error.weight, "output_error": error.output} for error in errors
        ],
    }
    write_json(folder / REPORT, report)
    return {**report, "seconds": time.perf_counter() - started}


def _error(name: str, weight: Tensor, rounded: Tensor, layers: LayerPass | None, source: Weights) -> LayerError:
    share = float((rounded - weight).norm() / weight.norm().clamp(min=1e-30))
    seen = layers.inputs_of(name) if layers is not None else None
    if seen is None:
        return LayerError(name, share, None)
    rows = seen.rows
    if isinstance(source, AwqWeights):
        rows = rows / source.columns[name]
    right = rows @ weight.T
    return LayerError(name, share, float((rows @ (rounded - weight).T).norm() / right.norm().clamp(min=1e-30)))


def add_to_report(folder: str | os.PathLike[str], **values: Any) -> dict[str, Any]:
    """Writes `values` into the folder's `quantization.json` and returns it whole."""
    report = {**read_report(folder), **values}
    write_json(Path(folder) / REPORT, report)
    return report


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder's `quantization.json`. Raises `MifyError` where there is none, or one of an unknown version."""
    from mify.files import read_json

    path = Path(folder) / REPORT
    report = read_json(path)
    if not isinstance(report, dict) or (report.get("format"), report.get("version")) != (FORMAT, VERSION):
        raise MifyError(f"{path} is no {FORMAT} of version {VERSION}", "quantize the model again with `mify quantize`")
    return report


def sample_texts(documents: Sequence[Document], num_bytes: int) -> list[str]:
    """Beginnings of documents, at most 4,000 characters each, in order of id, until `num_bytes` are together."""
    texts: list[str] = []
    left = num_bytes
    for document in sorted(documents, key=lambda document: document.id):
        if left <= 0:
            break
        text = document.text[: min(4000, max(left, 1))]
        if text:
            texts.append(text)
            left -= len(text.encode("utf-8"))
    return texts


def bits_per_byte_as_run(model: Model, texts: Sequence[str], scheme: Scheme | None = None) -> float:
    """Held-out bits per byte of `model`; with a scheme, activations are rounded as engines round them."""
    from mify.eval.bits_per_byte import bits_per_byte

    with activations_rounded(model, scheme):
        return bits_per_byte(model, texts)


@contextmanager
def activations_rounded(model: nn.Module, scheme: Scheme | None) -> Iterator[None]:
    """While it is entered, what goes into the linear layers is rounded as engines do that run `scheme`."""
    if scheme is None or not scheme.layout.activations:
        yield
        return

    def rounded(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (scheme.round_activations(inputs[0]),)

    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    handles = [module.register_forward_pre_hook(rounded) for module in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
