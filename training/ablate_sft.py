"""`mify ablate sft-scale`: how much more conversations help, by runs on nested subsets.

A run of a smaller size sees a part of what the next larger one sees, drawn anew by each seed. All are measured on the
same conversations that no run has seen: nats a token of what the assistant says, conversation by conversation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mify.data.batch import IGNORE_LABEL, PackedBatch
from mify.errors import MifyError
from mify.files import atomic_file, read_json, write_json
from mify.loading import load, open_weights
from mify.model import Model
from mify.post.chat import BadConversation, Conversation, check, render
from mify.post.functions import check_functions

from .ablate import Difference, Say, compare
from .config import TrainConfig, load_recipe
from .objectives.conversations import conversation_files

METRIC = "answers"
Losses = list[tuple[str, int, float]]  # of each held-out conversation: its key, tokens with loss, nats


@dataclass(frozen=True)
class Step:
    """A size, and what it brought over the one before.

    Args:
        loss: mean over seeds, nats a token with loss. gained: against the size before; None for the first.
    """

    size: int
    steps: int
    loss: float
    gained: Difference | None


def run_sft_scale(
    conversations: Path,
    model: Path,
    folder: Path,
    *,
    sizes: Sequence[int] = (),
    seeds: Sequence[int] = (1, 2, 3),
    epochs: int = 2,
    held_out: int = 100,
    recipe: str = "ablate-sft",
    overrides: Sequence[str] = (),
    say: Say,
) -> list[Step]:
    """Trains `model` on every size with every seed (what is trained already is not trained again), and compares.

    Args:
        conversations: a .jsonl file or a folder of them. sizes: growing; by default an eighth of them, and doubled.
        epochs: of each run over its own conversations. held_out: how many are measured and not trained on.

    Raises:
        MifyError: too few conversations, sizes that do not grow, or what training raises.
    """
    training, measured = _split(conversations, folder, held_out)
    sizes = list(sizes) or [training // 8, training // 4, training // 2, training]
    if sizes != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > training or not seeds or epochs < 1:
        raise MifyError(
            f"sizes {sizes}, {len(seeds)} seeds and {epochs} epochs are no ladder over {training} conversations",
            "give growing sizes up to that number, and at least one seed and epoch",
        )
    tokenizer = open_weights(model).tokenizer
    if tokenizer is None:
        raise MifyError(f"{model} has no tokenizer", "give a model with a tokenizer.json")
    tokenizer.save(folder / "tokenizer")
    found: dict[int, list[dict[str, Losses]]] = {0: [{METRIC: _before(model, measured, folder)}] * len(seeds)}
    steps = {0: 0}
    for size in sizes:
        for seed in seeds:
            config = load_recipe(recipe, [
                f"--data.sources.conversations.path={folder / 'training.jsonl'}", f"--init.weights={model}",
                f"--data.tokenizer={folder / 'tokenizer'}", f"--data.conversations.stages=[{size}]", *overrides,
                f"--seed={seed}", f"--name=size-{size}-seed-{seed}", f"--folder={folder}",
            ])  # fmt: skip
            config, steps[size] = _with_steps(config, epochs)
            found.setdefault(size, []).append({METRIC: _train_and_measure(config, measured, say)})
    ladder = [0, *sizes]
    rows = []
    for before, size in zip([None, *ladder], ladder, strict=False):
        gained = None if before is None else compare(METRIC, str(size), found[before], found[size])
        losses = [loss for run in found[size] for loss in run[METRIC]]
        rows.append(Step(size, steps[size], sum(n for *_, n in losses) / sum(t for _, t, _ in losses), gained))
    write_json(folder / "sft-scale.json", {
        "format": "mify-sft-scale", "version": 1, "model": str(model), "seeds": list(seeds), "epochs": epochs,
        "held_out": len(measured), "conclusion": conclusion(rows),
        "rows": [
            {"size": r.size, "steps": r.steps, "loss": r.loss,
             "gained": vars(r.gained) | {"verdict": r.gained.verdict} if r.gained else None}
            for r in rows
        ],
    })  # fmt: skip
    return rows


def conclusion(rows: Sequence[Step]) -> str:
    """What may be said, in words."""
    helped = [row for row in rows[1:] if row.gained is not None and row.gained.verdict == "better"]
    if not helped:
        return "No size can be told from the one before it."
    last, final = helped[-1], rows[-1]
    text = f"{rows[0].loss:.3f} nats a token before, {final.loss:.3f} after {final.size:,} conversations"
    if last is final:
        return f"{text}; the last step, too, helped: more would probably help."
    return f"{text}; behind {last.size:,} no step can be told from the one before it."


def plot(rows: Sequence[Step], path: Path) -> None:
    """The loss over the number of conversations, each step's gain with its 95% interval below, as PNG."""
    from .charts import forest

    gains = [
        (f"{before.size:,} → {row.size:,}", row.gained.mean, row.gained.low, row.gained.high)
        for before, row in pairwise(rows)
        if row.gained is not None
    ]
    forest({"what each step of size brought": gains}, "nats a token (below zero is better)", path)


def answer_losses(model: Model, conversations: Sequence[Conversation]) -> Losses:
    """For each conversation its key, the tokens that carry loss, and their summed loss in nats."""
    tokenizer = model.require_tokenizer()
    found = []
    for conversation in conversations:
        ids, loss = render(conversation, tokenizer)
        labels = [token if own else IGNORE_LABEL for token, own in zip(ids[1:], loss[1:], strict=True)]
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        batch = PackedBatch(
            torch.tensor(ids), torch.tensor([*labels, IGNORE_LABEL]), torch.arange(len(ids)), bounds, len(ids)
        )
        with torch.no_grad():
            summed, count = model.loss(batch)
        found.append((conversation.key.hex(), int(count), float(summed)))
    return found


def _split(path: Path, folder: Path, held_out: int) -> tuple[int, list[Conversation]]:
    """Writes folder/training.jsonl; returns how many it holds, and those held out: the first by a hash of their own."""
    known: dict[bytes, Conversation] = {}
    for file in conversation_files(path):
        for line in file.read_bytes().splitlines():
            try:
                conversation = Conversation.from_json(line)
                check(conversation)
                check_functions(conversation)
            except BadConversation:
                continue  # as `mify convert` and training count them; here every size leaves out the same
            known.setdefault(conversation.key, conversation)
    order = sorted(known, key=lambda key: blake2b(key, key=b"held-out", digest_size=16).digest())
    if len(order) < held_out + 8:
        raise MifyError(f"{path} holds {len(order)} different conversations", f"{held_out} are held out; give more")
    lines = "".join(known[key].to_json() + "\n" for key in sorted(order[held_out:]))
    with atomic_file(folder / "training.jsonl") as temporary:
        temporary.write_text(lines, encoding="utf-8")
    return len(order) - held_out, [known[key] for key in order[:held_out]]


def _with_steps(config: TrainConfig, epochs: int) -> tuple[TrainConfig, int]:
    """The configuration with as many steps as its conversations give rows in so many epochs."""
    from dataclasses import replace

    from .data import open_stream
    from .objectives.sft import ConversationStream
    from .parallel import World

    stream = open_stream(config, World(0, 1, 1, torch.device("cpu")))
    assert isinstance(stream, ConversationStream)
    rows = sum(stream.rows_in_epoch(epoch) for epoch in range(epochs))
    steps = max(1, math.ceil(rows / config.data.rows_per_step))
    return replace(config, steps=steps), steps


def _before(model: Path, measured: Sequence[Conversation], folder: Path) -> Losses:
    return _stored(folder / "before.json", {"model": str(model)}, measured, lambda: load(model))


def _train_and_measure(config: TrainConfig, measured: Sequence[Conversation], say: Say) -> Losses:
    from .trainer import train

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if record.get("loss") is not None and step == steps:
            say(f"{config.name}: {steps} steps, loss {record['loss']:.3f}")

    result = train(config, progress)
    identity = {"checkpoint": read_json(result.checkpoint / "manifest.json")}
    return _stored(config.run_folder / "held_out.json", identity, measured, lambda: load(result.checkpoint))


def _stored(path: Path, identity: dict[str, Any], measured: Sequence[Conversation], open_model: Any) -> Losses:
    """The losses of `path`, measured where it is absent or of something else."""
    identity = {**identity, "held_out": [conversation.key.hex()[:16] for conversation in measured]}
    if path.is_file() and (known := read_json(path))["identity"] == identity:
        return [tuple(row) for row in known["losses"]]
    losses = answer_losses(open_model(), measured)
    write_json(path, {"format": "mify-answer-losses", "version": 1, "identity": identity, "losses": losses})
    return losses
