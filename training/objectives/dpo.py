"""Direct preference optimization (Rafailov et al., arXiv 2305.18290): a loss over pairs of answers, no reward model.

With h = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), sums over the answers' tokens:

    sigmoid  −(1 − ε) log σ(βh) − ε log σ(−βh)              label smoothing ε: conservative DPO
    robust   (−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε)  arXiv 2403.00409
    ipo      (h′ − 1/(2β))², h′ of means over tokens          arXiv 2310.12036

A pair is two neighbouring segments of one row, so no cut into micro-batches or ranks parts it. The reference's
log-probabilities are computed once, before the first step, and stored: under a key of the reference's weights and the
pairs, so that a sweep over β computes them once and no run takes those of another.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mify.data.batch import AnnotatedBatch, PackedBatch
from mify.data.packing import best_fit_decreasing
from mify.data.segments import PackedEpochs, Segment, pack_segments
from mify.errors import MifyError
from mify.files import read_json, write_json
from mify.model import Model
from mify.post.preferences import read_preferences
from mify.post.prompts import answer_ids, prompt_ids
from mify.training.config import TrainConfig
from mify.training.evaluate import evaluating
from mify.training.fingerprint import weights_fingerprint
from mify.training.parallel import World
from mify.training.preference_config import DpoSection

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer

FORMAT, VERSION = "preference-stream", 1
REFERENCE_FORMAT, REFERENCE_VERSION = "reference-log-probabilities", 1


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the chosen and with the rejected answer; `identity`: 64 bits of its line's SHA-256, hexadecimal."""

    chosen: Segment
    rejected: Segment
    source: int
    identity: str

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


class PreferenceStream:
    """Batches of packed pairs, resumable at any step, the same on any number of ranks.

    Args:
        sources: (name, a .jsonl file or a folder of them, how often each pair is seen in an epoch).
        context: tokens per row; a pair must fit into one, both answers with their prompt. rows_per_step: of the global
            batch. seed: keys every order.
        rank, world_size: this process makes rows [rank, rank + 1) * rows_per_step / world_size of each batch.
        skip: identities of pairs that keep their place and carry no loss.

    Raises:
        MifyError: nothing there, a line that is no pair, pairs that are all longer than the context.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Path, float]],
        tokenizer: Tokenizer,
        *,
        context: int,
        rows_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: Collection[str] = (),
    ) -> None:
        if rows_per_step % world_size:
            raise MifyError(f"rows_per_step = {rows_per_step} does not divide over {world_size} ranks", "change one")
        self.context, self.rows_per_step, self.seed = context, rows_per_step, seed
        self.rank, self.world_size = rank, world_size
        self.names = [name for name, _, _ in sources]
        self.tokens, self.too_long = [0] * len(sources), [0] * len(sources)
        self.pairs: list[Pair] = []
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eot_id or 0
        entries: list[int] = []
        content = hashlib.sha256(tokenizer.fingerprint.encode())
        for number, (name, path, weight) in enumerate(sources):
            if weight < 1 or weight != int(weight):
                raise MifyError(
                    f"data.sources.{name}.weight = {weight} is no whole number",
                    "for dpo a weight is how often each pair is seen in an epoch: 1, 2, …",
                )
            for preference in read_preferences(path):
                content.update(preference.line + b"\n")
                prompt = prompt_ids(preference.prompt, tokenizer)
                chosen, rejected = (
                    Segment.answer(prompt, answer_ids(preference.prompt, answer, tokenizer))
                    for answer in (preference.chosen, preference.rejected)
                )
                pair = Pair(chosen, rejected, number, hashlib.sha256(preference.line).hexdigest()[:16])
                if len(pair) > context:
                    self.too_long[number] += 1
                    continue
                entries += [len(self.pairs)] * int(weight)
                self.pairs.append(pair)
        if not self.pairs:
            raise MifyError("no pair of answers fits the context", f"raise data.context above {context}")
        self.content = content.hexdigest()
        blanked = {identity[:16] for identity in skip}
        self.blank = {number for number, pair in enumerate(self.pairs) if pair.identity in blanked}
        lengths = [len(pair) for pair in self.pairs]
        self.max_pairs = max(1, min(context // min(lengths), max(8, context // 64)))
        self._epochs = PackedEpochs(
            lambda epoch: entries,
            lengths,
            context=context,
            max_items=self.max_pairs,
            seed=seed,
            key=int(self.content[:16], 16),
        )
        self.reference: NDArray[np.float64] | None = None
        """(pairs, 2): the reference's log-probabilities of chosen and rejected answers, once they are known."""

    def __iter__(self) -> Iterator[PackedBatch]:
        share = self.rows_per_step // self.world_size
        while True:
            rows = [self._epochs.next_row() for _ in range(self.rows_per_step)]
            for number in (number for row in rows for number in row):
                self.tokens[self.pairs[number].source] += len(self.pairs[number])
            yield self.batch(rows[self.rank * share : (self.rank + 1) * share])

    def batch(self, rows: Sequence[Sequence[int]]) -> AnnotatedBatch:
        """Rows of pairs, with notes of each row's pairs, at most P:

        counts (rows, P): whether there is a pair, and not a blanked one. units (rows,): how many count.
        reference (rows, P, 2): the reference's log-probabilities, 0 where they are not known.
        slot (T,): 2 × pair + 0 for a chosen, 1 for a rejected answer.
        """
        segments = [
            [s for number in row for s in (self.pairs[number].chosen, self.pairs[number].rejected)] for row in rows
        ]
        packed = pack_segments(segments, context=self.context, pad_id=self.pad_id, max_segments=2 * self.max_pairs)
        slot = torch.zeros(len(rows), self.context, dtype=torch.int64)
        reference = torch.zeros(len(rows), self.max_pairs, 2, dtype=torch.float64)
        counts = torch.zeros(len(rows), self.max_pairs, dtype=torch.bool)
        for index, row in enumerate(rows):
            sizes = torch.tensor([len(segment) for segment in segments[index]])
            slot[index, : int(sizes.sum())] = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
            counts[index, : len(row)] = torch.tensor([number not in self.blank for number in row])
            if self.reference is not None:
                reference[index, : len(row)] = torch.from_numpy(self.reference[list(row)])
        notes = {
            "units": counts.sum(1),
            "counts": counts,
            "reference": reference,
            "slot": slot.reshape(-1),
        }
        return AnnotatedBatch(
            packed.tokens, packed.labels, packed.positions, packed.cu_seqlens, packed.max_seqlen, notes=notes
        )

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch given out."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity(),
            **self._epochs.state_dict(),
            "tokens": list(self.tokens),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which the state was taken.

        Raises:
            MifyError: the state is of other pairs, another seed, context or batch.
        """
        if (state.get("format"), state.get("version"), state.get("identity")) != (FORMAT, VERSION, self._identity()):
            raise MifyError("the checkpoint's pairs are others than these", "give the same data, or start a new run")
        self._epochs.load_state_dict(state)
        self.tokens = list(state["tokens"])

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        """For each row of the global batch that follows `state` its pairs: 64 bits of their lines' SHA-256."""
        other = copy.copy(self)
        other._epochs = copy.copy(self._epochs)
        other.load_state_dict(state)
        rows = [other._epochs.next_row() for _ in range(self.rows_per_step)]
        return [[self.pairs[number].identity for number in row] for row in rows]

    def notes(self) -> list[str]:
        """What people should know before the first step."""
        left = {name: count for name, count in zip(self.names, self.too_long, strict=True) if count}
        return [f"{count} pairs of {name} pass data.context and are left out" for name, count in left.items()]

    def ledger(self) -> dict[str, Any]:
        """Tokens trained by source, epochs, and the pairs left out because they pass the context."""
        return {
            name: {"tokens": tokens, "epochs": self._epochs.epochs, "too_long": too_long}
            for name, tokens, too_long in zip(self.names, self.tokens, self.too_long, strict=True)
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "content": self.content,
            "seed": self.seed,
            "context": self.context,
            "rows_per_step": self.rows_per_step,
        }


class Dpo:
    """The loss over pairs, against the stored log-probabilities of the model that the run starts from."""

    names: tuple[str, ...] = (
        "rewards_chosen",
        "rewards_rejected",
        "margin",
        "accuracy",
        "log_prob_chosen",
        "log_prob_rejected",
    )

    def __init__(self, config: TrainConfig, world: World, model: Model, stream: PreferenceStream) -> None:
        self._config = config.dpo
        path = Path(config.dpo.reference) if config.dpo.reference else config.run_folder / "reference.json"
        key = {"model": weights_fingerprint(model), "data": stream.content, "context": stream.context}
        try:
            stream.reference = stored_reference(path, key, len(stream.pairs))
        except MifyError:
            if config.dpo.reference:
                raise
            # In the run's own folder it is of a start that came to no checkpoint: after one, other data are refused.
        if stream.reference is None:
            stream.reference = reference_log_probs(model, stream, world)
            if world.is_main:
                write_reference(path, key, stream.reference)
            world.barrier()

    def loss(self, model: Model, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, AnnotatedBatch)
        answers, lengths = answer_log_probs(model, batch)
        there = batch.notes["counts"]
        answers, lengths = answers[there], lengths[there]  # (pairs, 2)
        ratios = answers - batch.notes["reference"][there].to(answers.dtype)
        losses = dpo_losses(ratios, lengths, self._config)
        rewards = self._config.beta * ratios.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        chosen, rejected = rewards.sum(0).unbind()
        sums = [chosen, rejected, margins.sum(), (margins > 0).sum(), *answers.detach().sum(0).unbind()]
        return losses.sum(), torch.stack([value.double() for value in sums])

    def facts(self) -> dict[str, Any]:
        return {}

    def evaluate(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def dpo_losses(ratios: Tensor, lengths: Tensor, config: DpoSection) -> Tensor:
    """(n,) losses.

    Args:
        ratios: (n, 2) log π/π_ref of the chosen and the rejected answers. lengths: (n, 2) their tokens.
    """
    if config.loss == "ipo":
        means = ratios / lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * config.beta)).square()
    logits = config.beta * (ratios[:, 0] - ratios[:, 1])
    epsilon = config.label_smoothing
    right, wrong = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    if config.loss == "robust":
        return ((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)
    return (1 - epsilon) * right + epsilon * wrong


def answer_log_probs(model: Model, batch: AnnotatedBatch) -> tuple[Tensor, Tensor]:
    """(rows, P, 2) log-probabilities of the answers, and their numbers of tokens, 0 where there is no pair."""
    each, _ = model.log_probs(batch)
    rows, most = batch.notes["reference"].shape[:2]
    slot = batch.notes["slot"].reshape(rows, -1)
    sums = each.new_zeros(rows, 2 * most).scatter_add(1, slot, each.reshape(rows, -1))
    labelled = (batch.labels != -100).to(each.dtype).reshape(rows, -1)
    counts = torch.zeros_like(sums).scatter_add(1, slot, labelled)
    return sums.view(rows, most, 2), counts.view(rows, most, 2)


def reference_log_probs(model: Model, stream: PreferenceStream, world: World) -> NDArray[np.float64]:
    """(pairs, 2) log-probabilities of all answers under `model`, the pairs dealt out over the ranks."""
    lengths = [len(pair) for pair in stream.pairs]
    rows = best_fit_decreasing(lengths, stream.context, stream.max_pairs)
    found = torch.zeros(len(stream.pairs), 2, dtype=torch.float64)
    device = world.device
    with evaluating(model), torch.no_grad():
        # Every rank goes through the model equally often, as sharded weights ask for; what is too much counts for none.
        for first in range(0, len(rows), world.size):
            row = rows[min(first + world.rank, len(rows) - 1)]
            batch = stream.batch([row]).to(device)
            answers, _ = answer_log_probs(model, batch)
            if first + world.rank < len(rows):
                found[row] = answers[0, : len(row)].double().cpu()
    return world.sum(found.to(device)).cpu().numpy()


def stored_reference(path: Path, key: dict[str, Any], pairs: int) -> NDArray[np.float64] | None:
    """What `write_reference` stored under this key; None where there is no file yet.

    Raises:
        MifyError: the file is of another format, model or data.
    """
    if not path.exists():
        return None
    document = read_json(path)
    header = (document.get("format"), document.get("version"))
    if header != (REFERENCE_FORMAT, REFERENCE_VERSION):
        raise MifyError(f"{path} is no {REFERENCE_FORMAT} of version {REFERENCE_VERSION}", "name another file")
    for part, what in (("model", "another reference model"), ("data", "other pairs"), ("context", "another context")):
        if document["key"][part] != key[part]:
            raise MifyError(f"{path} holds log-probabilities of {what}", "delete it, or name another dpo.reference")
    values = np.array(document["log_probs"], np.float64).reshape(-1, 2)
    if len(values) != pairs:
        raise MifyError(f"{path} holds {len(values)} pairs, not {pairs}", "delete it: it will be made again")
    return values


def write_reference(path: Path, key: dict[str, Any], log_probs: NDArray[np.float64]) -> None:
    """Stores the reference's log-probabilities, pair by pair in the order of the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {"format": REFERENCE_FORMAT, "version": REFERENCE_VERSION, "key": key, "log_probs": log_probs.tolist()},
    )
