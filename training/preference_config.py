"""What a run that learns from preferences or rewards can be told: the sections `dpo` and `grpo` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mify.errors import MifyError


@dataclass(frozen=True)
class DpoSection:
    """Preference optimization, see `objectives.dpo`. Read where objective = dpo."""

    beta: float = 0.1  # how strongly the policy is held to the reference, the model in init.weights
    loss: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0  # share of pairs taken to be the wrong way round: conservative DPO, or robust
    reference: str | None = None  # file of the reference's log-probabilities; None: reference.json in the run folder

    def __post_init__(self) -> None:
        _positive("dpo.beta", self.beta)
        if self.loss == "ipo" and self.label_smoothing:
            raise MifyError("dpo.loss = ipo knows no dpo.label_smoothing", "set --dpo.label_smoothing=0")
        most = 0.5 if self.loss == "robust" else 1.0
        if not 0 <= self.label_smoothing < most:
            raise MifyError(f"dpo.label_smoothing = {self.label_smoothing} must lie between 0 and {most}", "lower it")


@dataclass(frozen=True)
class GrpoSection:
    """Reinforcement learning with verifiable rewards, see `objectives.grpo`. Read where objective = grpo."""

    groups: int = 16  # tasks a rollout asks
    group_size: int = 8  # answers to each
    steps_per_rollout: int = 1  # updates on a rollout's answers, a share of the groups each; above 1 is off-policy
    passes: int = 1  # how often each answer is trained on
    max_new_tokens: int = 256
    temperature: float = 1.0
    # Rewards by name and their weights; see `mify.post.rewards`.
    rewards: dict[str, float] = field(default_factory=lambda: {"tests": 1.0, "format": 0.1})
    length_budget: int | None = None  # tokens that the reward `length` allows for free; None: half of max_new_tokens
    on_error: Literal["stop", "go on"] = "go on"  # when a reward cannot be computed; going on, it is counted
    scale_rewards: Literal["group", "batch", "none"] = "group"  # what an advantage is divided by the deviation of
    loss: Literal["grpo", "dr_grpo", "dapo"] = "dapo"  # mean over tokens then answers, over max_new_tokens, over tokens
    clip_low: float = 0.2  # the ratio of probabilities is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.28
    kl_weight: float = 0.0  # of the k3 estimate of KL(policy, model in init.weights)
    # Truncates the trainer's over the sampler's probability of a token. None, or at a temperature other than 1, where
    # the sampler does not tell it: taken as 1.
    importance_cap: float | None = 2.0
    held_out: str | None = None  # tasks to solve at every evaluation, greedily and by sampling
    held_out_samples: int = 4  # answers to each of those that are sampled
    keep_rollouts: int = 20  # files in the folder `rollouts` of the run: who looks at answers sees what is rewarded
    shuffle_rewards: bool = False  # deals a rollout's rewards out at random: the control of an experiment

    def __post_init__(self) -> None:
        names = ("groups", "steps_per_rollout", "passes", "max_new_tokens", "temperature")
        for name in names:
            _positive(f"grpo.{name}", getattr(self, name))
        if self.importance_cap is not None:
            _positive("grpo.importance_cap", self.importance_cap)
        if self.held_out_samples < 0 or self.keep_rollouts < 0:
            raise MifyError("grpo.held_out_samples and grpo.keep_rollouts are counts", "give 0 or more")
        if self.group_size < 2:
            raise MifyError("grpo.group_size must be 2 at least: an answer is judged against its group", "raise it")
        if self.groups % self.steps_per_rollout:
            raise MifyError(
                f"grpo.groups = {self.groups} is no multiple of grpo.steps_per_rollout = {self.steps_per_rollout}",
                "let every step have equally many groups",
            )
        if not 0 < self.clip_low < 1 or not self.clip_high > 0 or self.kl_weight < 0:
            raise MifyError(
                f"grpo.clip_low = {self.clip_low}, clip_high = {self.clip_high}, kl_weight = {self.kl_weight}",
                "clip_low lies between 0 and 1, clip_high above 0, and kl_weight is not negative",
            )
        if not self.rewards or not any(self.rewards.values()):
            raise MifyError("grpo.rewards gives weight to nothing", "set --grpo.rewards.tests=1")


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise MifyError(f"{key} = {value} must be above 0", f"give --{key}= a positive value")
