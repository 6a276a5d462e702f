"""What goes into each linear layer on real text: the statistics that static FP8 scales and AWQ need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model
    from mify.tokenizer import Tokenizer


@dataclass(slots=True)
class LinearInput:
    """The input x (tokens, width) of one linear layer, over all calibration tokens.

    Args:
        amax: the largest |x|.
        mean: (width,) mean |x| of each channel.
        rows: (≤ samples, width) some tokens' inputs, evenly spaced.
        tokens: how many were seen.
    """

    amax: float
    mean: Tensor
    rows: Tensor
    tokens: int
    _parts: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def linear_inputs(model: Model, sequences: Sequence[Sequence[int]], *, samples: int = 512) -> dict[str, LinearInput]:
    """Runs `model` over token sequences and returns the inputs of its linear layers, by weight name.

    Args:
        samples: how many tokens' inputs are kept whole for each layer.

    q, k and v (and gate and up) share an input: it stands under `q_proj` (and `gate_proj`).
    """
    total = sum(len(sequence) for sequence in sequences)
    if total == 0:
        raise MifyError("there is no calibration text", "give some text of the kind the model is for")
    every = max(1, total // samples)
    seen: dict[str, LinearInput] = {}
    position = 0

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            kept = x[(-position) % every :: every].cpu()
            amax, summed = float(x.abs().max()), x.abs().sum(0).cpu()
            known = seen.get(name)
            if known is None:
                seen[name] = LinearInput(amax, summed, torch.empty(0), len(x), [kept])
                return
            known.amax = max(known.amax, amax)
            known.mean += summed
            known.tokens += len(x)
            known._parts.append(kept)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "gate_proj", "down_proj"))
    ]
    device = model.head_weight.device
    try:
        for sequence in sequences:
            count = len(sequence)
            if not count:
                continue
            tokens = torch.tensor(sequence, device=device)
            bounds = torch.tensor([0, count], dtype=torch.int32, device=device)
            model(tokens, torch.arange(count, device=device), bounds, count)
            position += count
    finally:
        for handle in handles:
            handle.remove()
    for known in seen.values():
        known.mean /= known.tokens
        known.rows = torch.cat(known._parts)[:samples]
        known._parts.clear()
    return seen


def calibration_sequences(
    source: str | os.PathLike[str], tokenizer: Tokenizer, *, context: int, tokens: int = 16_384
) -> list[list[int]]:
    """Token sequences of at most `context`, about `tokens` in all, from a text file, a folder of them, or documents.

    A `.parquet` file is a documents file as `mify curate` writes it. Order is by name, so the same source gives the
    same sequences.
    """
    sequences: list[list[int]] = []
    left = tokens
    for text in _texts(Path(source)):
        ids = tokenizer.encode(text)[: min(context, left)]
        if ids:
            sequences.append(ids)
            left -= len(ids)
        if left <= 0:
            break
    if not sequences:
        raise MifyError(f"{source} holds no text", "give a text file, a folder of them, or documents.parquet")
    return sequences


def _texts(source: Path) -> Iterable[str]:
    if source.suffix == ".parquet":
        from mify.curation.documents import read_documents

        yield from (document.text for document in read_documents(source))
        return
    if not source.exists():
        raise MifyError(f"{source} does not exist", "give a text file, a folder of them, or documents.parquet")
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    for path in files:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            if not source.is_dir():
                raise MifyError(f"{source} is not UTF-8 text", "give a text file") from None
