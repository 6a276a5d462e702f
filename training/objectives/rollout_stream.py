"""The stream of a run that learns from its own answers: which tasks come when, and the rollout under way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.data.batch import PackedBatch
from mify.data.philox import Permutation, Purpose
from mify.errors import MifyError
from mify.post.prompts import prompt_ids
from mify.post.verifiable import CodeTask, read_tasks
from mify.training.config import TrainConfig
from mify.training.parallel import World
from mify.training.rollouts import Sampled

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer
    from mify.training.objectives.grpo import Grpo

FORMAT, VERSION = "rollout-stream", 1


class RolloutStream:
    """Batches of a model's own answers. `Grpo` lends it the model; until then it only knows its tasks.

    Raises:
        MifyError: nothing there, a line that is no task, tasks whose prompts leave no room for an answer.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, world: World) -> None:
        self.config, self.tokenizer, self.world = config, tokenizer, world
        grpo = config.grpo
        self.parts = grpo.steps_per_rollout * grpo.passes
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eot_id or 0
        self.names = list(config.data.sources)
        self.too_long = [0] * len(self.names)
        self.tasks: list[CodeTask] = []
        self.prompts: list[list[int]] = []
        self._source_of: list[int] = []
        self._entries: list[int] = []
        content = hashlib.sha256(tokenizer.fingerprint.encode())
        for number, (name, source) in enumerate(config.data.sources.items()):
            if source.weight < 1 or source.weight != int(source.weight):
                raise MifyError(
                    f"data.sources.{name}.weight = {source.weight} is no whole number",
                    "for grpo a weight is how often each task is asked in an epoch: 1, 2, …",
                )
            for task in read_tasks(Path(source.path)):
                content.update(task.line + b"\n")
                prompt = prompt_ids(task.prompt, tokenizer)
                if len(prompt) + grpo.max_new_tokens > config.data.context:
                    self.too_long[number] += 1
                    continue
                self._entries += [len(self.tasks)] * int(source.weight)
                self.tasks.append(task)
                self.prompts.append(prompt)
                self._source_of.append(number)
        if not self.tasks:
            raise MifyError(
                f"no prompt leaves room for grpo.max_new_tokens = {grpo.max_new_tokens} in the context",
                f"raise data.context above {config.data.context}, or lower max_new_tokens",
            )
        self.content = content.hexdigest()
        self.tokens = [0] * len(self.names)
        self.counts: Counter[str] = Counter()  # of what guards struck and of rewards that could not be computed
        self.number = 0  # of rollouts begun
        self.part = 0  # updates on the present one that have been given out
        self.rollout: list[Sampled] = []
        self.facts: dict[str, Any] = {}
        self.policy: Grpo | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        assert self.policy is not None
        while True:
            if not self.rollout or self.part == self.parts:
                self.rollout, self.facts = self.policy.roll_out(self.number)
                self.number, self.part = self.number + 1, 0
                for answer in self.rollout:
                    self.tokens[self._source_of[answer.task]] += len(answer.answer)
            batch = self.policy.batch(self._share(self.part))
            self.part += 1
            yield batch

    def _share(self, part: int) -> list[Sampled]:
        """The answers of an update: whole groups."""
        count = len(self.rollout) // self.config.grpo.steps_per_rollout
        first = part % self.config.grpo.steps_per_rollout * count
        return self.rollout[first : first + count]

    def asked(self, number: int) -> list[int]:
        """The tasks of a rollout: a place in a keyed order of all, epoch after epoch."""
        groups, size = self.config.grpo.groups, len(self._entries)
        orders: dict[int, Permutation] = {}
        chosen = []
        for place in range(number * groups, (number + 1) * groups):
            epoch = place // size
            if epoch not in orders:
                key = int(self.content[:16], 16)
                orders[epoch] = Permutation(size, self.config.seed, epoch, key, 0, Purpose.DOCUMENT_ORDER)
            chosen.append(self._entries[orders[epoch](place % size)])
        return chosen

    def drop(self) -> None:
        """Passes over what is left of the present rollout: its answers are those of weights that went wrong."""
        self.rollout, self.part = [], 0

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch given out; the rollout is in it where updates on it are still to come."""
        going = 0 < self.part < self.parts
        return {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity(),
            "number": self.number,
            "part": self.part if going else 0,
            "rollout": [answer.to_dict() for answer in self.rollout] if going else [],
            "facts": self.facts if going else {},
            "tokens": list(self.tokens),
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which the state was taken.

        Raises:
            MifyError: the state is of other tasks, another seed or another model to start from.
        """
        if (state.get("format"), state.get("version"), state.get("identity")) != (FORMAT, VERSION, self._identity()):
            raise MifyError(
                "the checkpoint's tasks or its first weights are others than these",
                "give the same data and init.weights, or start a new run",
            )
        self.number, self.part, self.facts = state["number"], state["part"], state["facts"]
        self.rollout = [Sampled(**answer) for answer in state["rollout"]]
        self.tokens, self.counts = list(state["tokens"]), Counter(state["counts"])

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        """The tasks of the rollout that follows `state` or is under way in it, as those of one row."""
        number = state["number"] - (1 if state["rollout"] else 0)
        return [[self.tasks[task].id for task in self.asked(number)]]

    def notes(self) -> list[str]:
        """What people should know before the first step."""
        left = {name: count for name, count in zip(self.names, self.too_long, strict=True) if count}
        return [
            f"{count} tasks of {name} leave no room for an answer in data.context and are left out"
            for name, count in left.items()
        ]

    def ledger(self) -> dict[str, Any]:
        """Answers' tokens by source, epochs, tasks left out for their length; what guards struck, errors of rewards."""
        epochs = self.number * self.config.grpo.groups / len(self._entries)
        sources: dict[str, Any] = {
            name: {"tokens": tokens, "epochs": epochs, "too_long": too_long}
            for name, tokens, too_long in zip(self.names, self.tokens, self.too_long, strict=True)
        }
        if self.counts:
            sources[self.names[0]]["counted"] = dict(sorted(self.counts.items()))
        return sources

    def _identity(self) -> dict[str, Any]:
        model = self.policy.fingerprint if self.policy is not None else None
        return {"content": self.content, "seed": self.config.seed, "model": model}
