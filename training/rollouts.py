"""Rollouts: a model's own answers to tasks, sampled with the weights as they are, judged, scored and set against their
group.

The sampler reads the very parameters that are trained, or, where they are sharded, a copy made for the rollout
(`model.model_to_sample`). A rollout is a pure function of (weights, tasks, seed, its number), for any number of ranks:
a run that was killed makes it again, or, where updates on it have begun, finds it in the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mify.data.batch import PackedBatch
from mify.data.packing import best_fit_decreasing
from mify.data.segments import Segment, pack_segments
from mify.model import Model

from .evaluate import evaluating
from .parallel import World


@dataclass(slots=True)
class Sampled:
    """An answer with all that its loss needs. Lists of floats are as long as `answer`.

    Args:
        task: number of the task. prompt, answer: token ids, the end token among the answer's where it came.
        finished: the answer ended by itself. sampled: log-probabilities under the sampler; None: as the trainer's.
        old: under the trainer with the weights that sampled; None: not needed. reference: under the reference model.
        reward, parts: NaN where they could not be computed. advantage: 0 there.
        status: of the judging.
    """

    task: int
    prompt: list[int]
    answer: list[int]
    finished: bool
    sampled: list[float] | None = None
    old: list[float] | None = None
    reference: list[float] | None = None
    reward: float = math.nan
    advantage: float = 0.0
    status: str = ""
    parts: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def segment(self) -> Segment:
        return Segment.answer(self.prompt, self.answer)


def sample_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    numbers: Sequence[int | str] | None = None,
    log_probs: bool = False,
    sequences: int = 256,
) -> list[tuple[list[int], bool, list[float] | None]]:
    """(tokens with the end token where it came, whether it came, log-probabilities under the sampler).

    Args:
        end: the token that ends an answer. temperature: 0 is greedy. sequences: at a time, others wait.
        seed, numbers: each answer's chance depends on the seed and its number; None: counted from 0.
        log_probs: whether the sampler tells them. The engine does at temperature 1; at another one there are none.
    """
    from mify.engine import PAGE_SIZE, Engine, Request, SamplingParams

    if not prompts:  # a rank without tasks
        return []
    requests = [
        Request(
            prompt,
            SamplingParams(
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=rollout_seed(seed, number),
                stop_ids=(end,),
                keep_stop_id=True,
                logprobs=0 if log_probs and temperature == 1 else None,
            ),
        )
        for number, prompt in zip(numbers if numbers is not None else range(len(prompts)), prompts, strict=True)
    ]
    longest = min(max(map(len, prompts)) + max_new_tokens, model.config.context)
    running = min(sequences, len(requests))
    kv_tokens: int | None = running * (longest + PAGE_SIZE)
    if model.head_weight.is_cuda:
        torch.cuda.empty_cache()  # what a training step has left in torch's cache counts as taken
        kv_tokens = None  # what is free: the optimizer's moments are there, too
    with evaluating(model):
        engine = Engine(model, max_sequences=running, kv_tokens=kv_tokens)
        results = engine.run(requests)
    return [(one.tokens, one.finish_reason == "stop", one.logprobs) for one in results]


def rollout_seed(seed: int, number: int | str) -> int:
    """63 bits that depend on both and nothing else."""
    return int.from_bytes(hashlib.sha256(f"rollout:{seed}:{number}".encode()).digest()[:8], "little") >> 1


@torch.no_grad()
def answer_log_probs(
    model: Model,
    sequences: Sequence[Sampled],
    world: World,
    *,
    temperature: float,
    context: int,
    rows: int,
    pad_id: int,
) -> list[list[float]]:
    """Log-probabilities of every answer's tokens under `model`, packed `rows` rows of `context` tokens at a time.

    All ranks must call it. They go through the model equally often, as sharded weights ask for, whatever each has.
    """
    lengths = [len(s.prompt) + len(s.answer) for s in sequences]
    bins = best_fit_decreasing(lengths, context, len(sequences))
    most = max((len(one) for one in bins), default=1)
    found: list[list[float]] = [[] for _ in sequences]
    with evaluating(model):
        times = int(world.maximum(torch.tensor(-(-len(bins) // rows))))
        for start in range(0, times * rows, rows):
            part = bins[start : start + rows]
            packed = pack_segments(
                [[sequences[i].segment() for i in one] for one in part or [[]]], context=context, pad_id=pad_id,
                max_segments=most,
            )  # fmt: skip
            each, _ = model.log_probs(packed.to(world.device), temperature=temperature)
            values = each.float().cpu().numpy().reshape(-1, context)
            for row, one in enumerate(part):
                for number, span in zip(one, answer_spans([sequences[i] for i in one]), strict=True):
                    found[number] = values[row, span].tolist()
    return found


def answer_spans(row: Sequence[Sampled]) -> list[slice]:
    """Where in a row each answer's labels stand: label t is the token t + 1."""
    spans, place = [], 0
    for sequence in row:
        first = place + len(sequence.prompt) - 1
        spans.append(slice(first, first + len(sequence.answer)))
        place += len(sequence.prompt) + len(sequence.answer)
    return spans


def advantages(rewards: Tensor, scale: str) -> Tensor:
    """(groups, k) of rewards: less their group's mean, and divided by a standard deviation (with n − 1), plus 1e-4.

    Args:
        rewards: (groups, k), NaN where there is none: it counts for nothing and its advantage is 0.
        scale: "group": by the group's deviation (Shao et al., arXiv 2402.03300); "batch": by that of all rewards
            (arXiv 2508.08221); "none" (Dr. GRPO, arXiv 2503.20783).
    """
    there = ~rewards.isnan()
    filled = rewards.nan_to_num(0.0)
    counts = there.sum(1, keepdim=True)
    centred = (filled - filled.sum(1, keepdim=True) / counts.clamp(min=1)) * there
    if scale == "group":
        deviation = (centred.square().sum(1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
        centred = centred / (deviation + 1e-4)
    elif scale == "batch":
        known = rewards[there]
        deviation = known.std() if known.numel() > 1 else rewards.new_zeros(())
        centred = centred / (deviation + 1e-4)
    return centred


def shuffled(rewards: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The same rewards in another order: what a control learns from."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(rewards.ravel()).reshape(rewards.shape)


def summary(
    sequences: Sequence[Sampled], group_size: int, weights: Mapping[str, float], errors: Counter[str]
) -> dict[str, Any]:
    """What a record says of a rollout."""
    count = len(sequences)
    rewards = np.array([s.reward for s in sequences])
    grouped = np.array([s.advantage for s in sequences]).reshape(-1, group_size)
    known = rewards[~np.isnan(rewards)]
    statuses = Counter(s.status for s in sequences)
    facts: dict[str, Any] = {
        "reward": float(known.mean()) if known.size else None,
        "reward_std": float(known.std(ddof=1)) if known.size > 1 else 0.0,
        "solved": sum(s.status == "passed" for s in sequences) / count,
        "answer_tokens": sum(len(s.answer) for s in sequences) / count,
        "cut_off": sum(not s.finished for s in sequences) / count,
        "groups_without_signal": float((grouped == 0).all(1).mean()),
        "statuses": dict(sorted(statuses.items())),
    }
    for name in weights:
        values = [s.parts[name] for s in sequences if not math.isnan(s.parts.get(name, math.nan))]
        facts[f"reward_{name}"] = sum(values) / len(values) if values else None
    if errors:
        facts["reward_errors"] = dict(sorted(errors.items()))
    return facts


def pack_answers(
    sequences: Sequence[Sampled], *, context: int, pad_id: int, multiple: int, max_segments: int
) -> tuple[PackedBatch, list[list[int]]]:
    """Rows of answers with their prompts, their number a multiple of `multiple`, and the answers of each row."""
    lengths = [len(s.prompt) + len(s.answer) for s in sequences]
    bins = best_fit_decreasing(lengths, context, max_segments)
    bins += [[] for _ in range(-len(bins) % multiple or (0 if bins else multiple))]
    rows = [[sequences[i].segment() for i in one] for one in bins]
    return pack_segments(rows, context=context, pad_id=pad_id, max_segments=max_segments), bins
