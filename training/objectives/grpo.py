"""Group relative policy optimization with verifiable rewards (GRPO: Shao et al., arXiv 2402.03300; DeepSeek-R1).

Of every task `group_size` answers are sampled and scored (`mify.post.rewards`); an answer's advantage is its reward
against its group's mean, so no value model is needed, and no reward model where tests tell right from wrong. With the
ratio r = π(token)/π_old(token), π_old being the weights that sampled, a token's loss is

    −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) · min(π_old/π_sampler, importance_cap) + kl_weight · k3
    k3 = π_ref/π − log(π_ref/π) − 1                                             (Schulman's estimate of KL(π, π_ref))

summed over tokens and divided by: grpo: the answer's tokens, then the answers; dr_grpo (arXiv 2503.20783): answers ×
max_new_tokens; dapo (arXiv 2503.14476): the tokens of all answers. Truncated importance sampling stands in for a
sampler that computes otherwise than the trainer (another engine, quantized weights).

Several updates may be made on one rollout: `steps_per_rollout` shares of its groups, `passes` times. Answers whose
advantage is 0 would only add zeros and do not pass through the model, as long as kl_weight is 0.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mify.data.batch import AnnotatedBatch, PackedBatch
from mify.errors import MifyError
from mify.files import write_json
from mify.model import Model
from mify.post.prompts import end_id, prompt_ids
from mify.post.rewards import Answered, reward_functions, score
from mify.post.verifiable import CodeTask, Judge, read_tasks
from mify.training.config import TrainConfig
from mify.training.fingerprint import weights_fingerprint
from mify.training.model import model_to_sample
from mify.training.objectives.rollout_stream import RolloutStream
from mify.training.parallel import World
from mify.training.preference_config import GrpoSection
from mify.training.rollouts import (
    Sampled,
    advantages,
    answer_log_probs,
    answer_spans,
    pack_answers,
    rollout_seed,
    sample_answers,
    shuffled,
    summary,
)

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer


class Grpo:
    """The loss over answers, and where they come from."""

    names: tuple[str, ...] = ("kl", "entropy", "clipped")

    def __init__(self, config: TrainConfig, world: World, model: Model, stream: RolloutStream) -> None:
        self.config, self.world, self.model, self.stream = config.grpo, world, model, stream
        self._run = config
        self._functions = reward_functions(self.config.rewards)
        self.fingerprint = weights_fingerprint(model)
        self.context = config.data.context
        self._folder = config.run_folder / "rollouts"
        self._rows = config.data.micro_rows or 8
        self._multiple = world.size * (config.data.micro_rows or 1)
        if config.parallel.fixed_order:
            self._multiple = math.lcm(self._multiple, config.parallel.virtual_shards)
        self._reference: Model | None = None
        if self.config.kl_weight:
            from mify.loading import load

            assert config.init.weights is not None
            self._reference = load(config.init.weights).to(world.device).eval().requires_grad_(False)
        self._held_out = self._held_out_tasks()
        self._judge = Judge()
        self._answered = False
        stream.policy = self

    def close(self) -> None:
        self._judge.close()

    # ---- rollouts

    def roll_out(self, number: int) -> tuple[list[Sampled], dict[str, Any]]:
        """All answers of rollout `number`, group by group, equal on all ranks; and what a record says of it."""
        config, stream, world = self.config, self.stream, self.world
        started = time.perf_counter()
        tasks, size = stream.asked(number), config.group_size
        mine = [
            place * size + one for place in range(world.rank, len(tasks), world.size) for one in range(size)
        ]  # places among all answers
        answers = self._sample([tasks[place // size] for place in mine], mine, rollout_seed(self._run.seed, number))
        sampled = time.perf_counter()
        failure, errors = None, Counter[str]()
        try:
            errors = self._score(answers)
        except MifyError as error:
            failure = error
        for one in world.gather(failure):  # a rank that stopped alone would leave the others waiting
            if one is not None:
                raise one
        judged = time.perf_counter()
        self._add_log_probs(answers)
        answers, errors = self._gathered(answers, errors, len(tasks))
        self._set_advantages(answers, number)
        stream.counts.update(errors)
        stream.counts.update(a.status for a in answers if a.status in ("suspect", "hard-coded", "forged"))
        facts = {"rollout": number, **summary(answers, config.group_size, config.rewards, errors)}
        if world.is_main:
            self._keep(number, answers)
        clock = {"sample_seconds": sampled - started, "judge_seconds": judged - sampled}
        return answers, facts | {"time": clock}

    def _sample(self, tasks: Sequence[int], numbers: Sequence[int], seed: int) -> list[Sampled]:
        """An answer to each of `tasks`, in order; prompts whose answers end with one token together."""
        model, stream = model_to_sample(self.model, self._run), self.stream
        found: list[Sampled | None] = [None] * len(tasks)
        ends = [end_id(stream.tasks[task].prompt, stream.tokenizer) for task in tasks]
        for end in sorted(set(ends)):
            places = [place for place, own in enumerate(ends) if own == end]
            got = sample_answers(
                model, [stream.prompts[tasks[place]] for place in places], end=end,
                max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature,
                seed=rollout_seed(seed, end), numbers=[numbers[place] for place in places],
                log_probs=self.config.importance_cap is not None,
            )  # fmt: skip
            for place, (tokens, finished, sampled) in zip(places, got, strict=True):
                task = tasks[place]
                found[place] = Sampled(task, list(stream.prompts[task]), tokens, finished, sampled)
        return [answer for answer in found if answer is not None]

    def _score(self, answers: Sequence[Sampled]) -> Counter[str]:
        """Fills in statuses, parts and rewards; returns what could not be computed."""
        config, stream = self.config, self.stream
        texts = [stream.tokenizer.decode(a.answer[:-1] if a.finished else a.answer) for a in answers]
        tasks = [stream.tasks[a.task] for a in answers]
        judged = self._judge.judge(list(zip(tasks, texts, strict=True)))
        budget = config.length_budget if config.length_budget is not None else config.max_new_tokens // 2
        scores = score(
            [
                Answered(task, text, len(a.answer), a.finished, verdict, budget, config.max_new_tokens)
                for a, task, text, verdict in zip(answers, tasks, texts, judged, strict=True)
            ],
            self._functions,
            config.rewards,
            stop=config.on_error == "stop",
        )
        for index, (answer, verdict) in enumerate(zip(answers, judged, strict=True)):
            answer.status, answer.reward = verdict.status, scores.rewards[index]
            answer.parts = {name: values[index] for name, values in scores.parts.items()}
        return scores.errors

    def _add_log_probs(self, answers: Sequence[Sampled]) -> None:
        def under(model: Model) -> list[list[float]]:
            return answer_log_probs(
                model, answers, self.world, temperature=self.config.temperature, context=self.context, rows=self._rows,
                pad_id=self.stream.pad_id,
            )  # fmt: skip

        # The ratio to the weights that sampled is 1 in the only update on an answer, unless the sampler is told apart.
        told = self.config.importance_cap is not None and self.config.temperature == 1
        if self.stream.parts > 1 or told:
            for answer, values in zip(answers, under(self.model), strict=True):
                answer.old = values
        if self._reference is not None:
            for answer, values in zip(answers, under(self._reference), strict=True):
                answer.reference = values

    def _gathered(
        self, answers: list[Sampled], errors: Counter[str], groups: int
    ) -> tuple[list[Sampled], Counter[str]]:
        """All ranks' answers in the order of the tasks."""
        parts = self.world.gather((answers, errors))
        size = self.config.group_size
        ordered: list[Sampled] = []
        for place in range(groups):
            own = parts[place % self.world.size][0]
            first = place // self.world.size * size
            ordered += own[first : first + size]
        return ordered, sum((part[1] for part in parts), Counter())

    def _set_advantages(self, answers: Sequence[Sampled], number: int) -> None:
        rewards = np.array([answer.reward for answer in answers]).reshape(-1, self.config.group_size)
        if self.config.shuffle_rewards:
            rewards = shuffled(rewards, rollout_seed(self._run.seed, -1 - number))
        values = advantages(torch.from_numpy(rewards), self.config.scale_rewards)
        for answer, value in zip(answers, values.reshape(-1).tolist(), strict=True):
            answer.advantage = value

    def _keep(self, number: int, answers: Sequence[Sampled]) -> None:
        """Writes a rollout where people can read it; older files than the newest `keep_rollouts` go."""
        if not self.config.keep_rollouts:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        decode = self.stream.tokenizer.decode
        lines = [
            {
                "task": self.stream.tasks[a.task].id,
                "answer": decode(a.answer),
                "status": a.status,
                "reward": None if math.isnan(a.reward) else a.reward,
                "advantage": a.advantage,
            }
            for a in answers
        ]
        write_json(self._folder / f"rollout-{number:08d}.json", {"format": "rollout", "version": 1, "answers": lines})
        for path in sorted(self._folder.glob("rollout-*.json"))[: -self.config.keep_rollouts]:
            path.unlink()

    # ---- the loss

    def batch(self, answers: Sequence[Sampled]) -> AnnotatedBatch:
        """This rank's rows of an update on `answers`, with notes of every token (T,) but `units` (rows,):

        advantage, old, correction, reference: of the answer's token that the position predicts, 0 elsewhere.
        weight: what its loss counts, so that the sum over `units` answers is the loss. mean: 1 / tokens of its answer.
        """
        keep = [a for a in answers if a.advantage != 0 or self.config.kl_weight]
        packed, rows = pack_answers(
            keep, context=self.context, pad_id=self.stream.pad_id, multiple=self._multiple,
            max_segments=max(8, self.context // 16),
        )  # fmt: skip
        notes = answer_notes(answers, keep, rows, self.context, self.config)
        units = torch.tensor([len(row) for row in rows])
        units[0] += len(answers) - len(keep)
        whole = AnnotatedBatch(
            packed.tokens, packed.labels, packed.positions, packed.cu_seqlens, packed.max_seqlen,
            notes=notes | {"units": units},
        )  # fmt: skip
        mine = whole.split(self.world.size)[self.world.rank] if self.world.size > 1 else whole
        assert isinstance(mine, AnnotatedBatch)
        return mine

    def loss(self, model: Model, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, AnnotatedBatch)
        log_probs, entropy = model.log_probs(batch, temperature=self.config.temperature)
        losses, kl, clipped = token_losses(log_probs, batch.notes, self.config)
        mean = batch.notes["mean"]
        sums = torch.stack([(value.detach() * mean).sum().double() for value in (kl, entropy, clipped)])
        return (losses * batch.notes["weight"]).sum(), sums

    def facts(self) -> dict[str, Any]:
        return self.stream.facts

    # ---- held-out tasks

    def _held_out_tasks(self) -> list[CodeTask]:
        """Those of `grpo.held_out`. None is left out, as one too long to train on is: that would change the measure."""
        if not self.config.held_out:
            return []
        tasks = read_tasks(Path(self.config.held_out))
        room = self.context - self.config.max_new_tokens
        for task in tasks:
            if (length := len(prompt_ids(task.prompt, self.stream.tokenizer))) > room:
                raise MifyError(
                    f"the prompt of the held-out task {task.id} has {length} tokens; data.context leaves it {room}",
                    f"leave it out of {self.config.held_out}, raise data.context, or lower grpo.max_new_tokens",
                )
        return tasks

    def evaluate(self) -> dict[str, Any]:
        """Shares of the held-out tasks that are solved: greedily, and by sampled answers."""
        if not self._held_out:
            return {}
        scores = {"greedy": self._solved(0.0, 1)}
        if self.config.held_out_samples:
            scores["sampled"] = self._solved(self.config.temperature, self.config.held_out_samples)
        return {"held_out_solved": scores}

    def _solved(self, temperature: float, samples: int) -> float:
        share = self._held_out[self.world.rank :: self.world.size]
        solved = solve(
            model_to_sample(self.model, self._run), self.stream.tokenizer, share, self._judge,
            samples=samples, temperature=temperature, max_new_tokens=self.config.max_new_tokens, seed=self._run.seed,
        )  # fmt: skip
        return math.fsum(x for part in self.world.gather(solved.tolist()) for x in part) / len(self._held_out)


def answer_notes(
    answers: Sequence[Sampled],
    keep: Sequence[Sampled],
    rows: Sequence[Sequence[int]],
    context: int,
    config: GrpoSection,
) -> dict[str, Tensor]:
    """See `Grpo.batch`. `answers` are all of the update, `keep` those that stand in the rows, by their number."""
    names = ["advantage", "correction", "weight", "mean"]
    names += ["old"] if all(a.old is not None for a in keep) else []
    names += ["reference"] if config.kl_weight else []
    notes = {name: np.zeros((len(rows), context), np.float32) for name in names}
    total = sum(len(answer.answer) for answer in answers)
    for index, row in enumerate(rows):
        inside = [keep[number] for number in row]
        for answer, span in zip(inside, answer_spans(inside), strict=True):
            count = len(answer.answer)
            weight = {"grpo": 1 / count, "dr_grpo": 1 / config.max_new_tokens, "dapo": len(answers) / total}
            notes["advantage"][index, span] = answer.advantage
            notes["weight"][index, span] = weight[config.loss]
            # Of what passes through the model; a record's mean is over all answers.
            notes["mean"][index, span] = len(answers) / (count * len(keep))
            notes["correction"][index, span] = 1.0
            if answer.old is not None:
                notes["old"][index, span] = answer.old
                if answer.sampled is not None and config.importance_cap is not None:
                    gap = np.array(answer.old) - np.array(answer.sampled)
                    notes["correction"][index, span] = np.minimum(np.exp(gap), config.importance_cap)
            if "reference" in notes and answer.reference is not None:
                notes["reference"][index, span] = answer.reference
    return {name: torch.from_numpy(values.reshape(-1)) for name, values in notes.items()}


def token_losses(log_probs: Tensor, notes: dict[str, Tensor], config: GrpoSection) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) losses, k3 estimates of the KL to the reference, and whether the clip holds a token (0 or 1)."""
    advantage = notes["advantage"]
    old = notes["old"] if "old" in notes else log_probs.detach()
    ratio = torch.exp(log_probs - old)
    held = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
    losses = -torch.min(ratio * advantage, held * advantage) * notes["correction"]
    kl = torch.zeros_like(losses)
    if "reference" in notes:
        gap = notes["reference"] - log_probs
        kl = torch.exp(gap) - gap - 1
        losses = losses + config.kl_weight * kl
    clipped = ((ratio < 1 - config.clip_low) & (advantage < 0)) | ((ratio > 1 + config.clip_high) & (advantage > 0))
    return losses, kl, clipped.to(losses.dtype)


def solve(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[CodeTask],
    judge: Judge,
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(tasks,) the share of each task's answers that solve it, whatever other tasks are asked beside it."""
    asked = [(task, f"{task.id}:{sample}") for task in tasks for sample in range(samples)]
    ends = [end_id(task.prompt, tokenizer) for task, _ in asked]
    texts: list[str] = [""] * len(asked)
    for end in sorted(set(ends)):
        places = [place for place, own in enumerate(ends) if own == end]
        answers = sample_answers(
            model, [prompt_ids(asked[place][0].prompt, tokenizer) for place in places], end=end,
            max_new_tokens=max_new_tokens, temperature=temperature, seed=rollout_seed(seed, end),
            numbers=[asked[place][1] for place in places],
        )  # fmt: skip
        for place, (tokens, finished, _) in zip(places, answers, strict=True):
            texts[place] = tokenizer.decode(tokens[:-1] if finished else tokens)
    verdicts = judge.judge([(task, text) for (task, _), text in zip(asked, texts, strict=True)])
    return np.array([verdict.solved for verdict in verdicts], np.float64).reshape(len(tasks), samples).mean(1)
