"""What goes into each linear layer on real text: the statistics that static FP8 scales and AWQ need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        gram: (width, width) xᵀx over all tokens, where it was asked for.
    """

    amax: float
    mean: Tensor
    rows: Tensor
    tokens: int
    gram: Tensor | None = None
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
    modules = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "gate_proj", "down_proj"))
    }
    device = model.head_weight.device
    with watching(modules, max(1, total // samples), samples) as seen:
        for sequence in sequences:
            count = len(sequence)
            if not count:
                continue
            tokens = torch.tensor(sequence, device=device)
            bounds = torch.tensor([0, count], dtype=torch.int32, device=device)
            model(tokens, torch.arange(count, device=device), bounds, count)
    return seen


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], every: int, samples: int, *, gram: bool = False
) -> Iterator[dict[str, LinearInput]]:
    """Records what goes into `modules` while it is entered; the figures are final once it is left.

    Args:
        modules: by the name to record each under. every: one token's input in so many is kept whole, at most `samples`.
        gram: whether xᵀx is summed up too.
    """
    seen: dict[str, LinearInput] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            known = seen.get(name)
            kept = x[(-(known.tokens if known else 0)) % every :: every].cpu()
            amax, summed = float(x.abs().max()), x.abs().sum(0).cpu()
            product = (x.t() @ x).cpu() if gram else None
            if known is None:
                seen[name] = LinearInput(amax, summed, torch.empty(0), len(x), product, [kept])
                return
            if known.gram is not None and product is not None:
                known.gram += product
            known.amax = max(known.amax, amax)
            known.mean += summed
            known.tokens += len(x)
            known._parts.append(kept)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    for known in seen.values():
        known.mean /= known.tokens
        known.rows = torch.cat(known._parts)[:samples]
        known._parts.clear()


def calibration_sequences(
    source: str | os.PathLike[str], tokenizer: Tokenizer, *, context: int, tokens: int = 16_384
) -> list[list[int]]:
    """Token sequences of at most `context`, about `tokens` in all, from text, documents, or token shards.

    A `.parquet` file is a documents file as `mify curate` writes it; a folder with meta.json holds token shards, which
    must be of `tokenizer`; else it is a text file or a folder of them. The beginnings of all documents come first, what
    follows them where those are too few. Order is by name, so the same source gives the same sequences.
    """
    sequences: list[list[int]] = []
    rests: list[list[int]] = []
    left = kept = tokens

    def take(ids: list[int]) -> list[int]:
        nonlocal left
        taken = ids[: min(context, left)]
        if taken:
            sequences.append(taken)
            left -= len(taken)
        return ids[len(taken) :]

    for full in _token_sequences(Path(source), tokenizer):
        rest = take(full)[:kept]
        if rest:
            rests.append(rest)
            kept -= len(rest)
        if left <= 0:
            break
    while left > 0 and rests:
        rests = [rest for rest in map(take, rests) if rest]
    if not sequences:
        raise MifyError(f"{source} holds no text", "give a text file, a folder of them, or documents.parquet")
    return sequences


def _token_sequences(source: Path, tokenizer: Tokenizer) -> Iterable[list[int]]:
    if not (source / "meta.json").is_file():
        yield from (tokenizer.encode(text) for text in _texts(source))
        return
    from mify.data.shards import TokenShards

    shards = TokenShards(source, tokenizer)
    yield from (shards.document(index).tolist() for index in range(shards.num_documents))


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
