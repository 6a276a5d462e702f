"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mify.errors import MifyError

FinishReason = Literal["stop", "length", "cancelled"]
MAX_TOP_LOGPROBS = 128


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is continued.

    A token is drawn from softmax(logits / temperature) over what `top_k`, then `top_p`, then `min_p` leave, by a number
    that depends on `seed` and the token's position alone. So neither neighbours in the batch, nor preemption, nor
    speculation change it.

    Args:
        max_new_tokens: at most so many; fewer where the context ends.
        temperature: 0 takes the likeliest token; then the next three are not used.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that together reach this probability, of what `top_k` left; 1 is all.
        min_p: only tokens at least this share as likely as the likeliest; 0 is all.
        seed: of the draws, 0 to 2^64 - 1.
        stop: texts that end the request, or one of them; the token that completes one is still returned.
        stop_ids: tokens that end it and are not returned; None is those that the model's file names, else the
            vocabulary's ends of text and of a chat turn.
        keep_stop_id: return the token that ended it as well.
        logprobs: None gives none; 0 gives each token's log-probability, n > 0 those of the n likeliest too. They are
            the model's own, log softmax(logits): temperature and filters leave them as they are.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: Sequence[str] | str = ()
    stop_ids: Sequence[int] | None = None
    keep_stop_id: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if self.max_new_tokens < 0:
            raise MifyError(f"max_new_tokens is {self.max_new_tokens}", "give 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise MifyError(f"temperature is {self.temperature}", "give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise MifyError(f"top_k is {self.top_k}", "give 0 (all tokens) or a positive number")
        if not 0 < self.top_p <= 1:
            raise MifyError(f"top_p is {self.top_p}", "give a number above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise MifyError(f"min_p is {self.min_p}", "give 0 (all tokens) to 1")
        if not 0 <= self.seed < 1 << 64:
            raise MifyError(f"seed is {self.seed}", "give a whole number from 0 to 2^64 - 1")
        if any(not text for text in self.stop):
            raise MifyError("a stop string is empty", "leave it out: every text contains it")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_TOP_LOGPROBS:
            raise MifyError(f"logprobs is {self.logprobs}", f"give None, or 0 to {MAX_TOP_LOGPROBS}")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it. ids: token ids, not empty."""

    ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        given: object = self.ids
        if isinstance(given, str):
            raise MifyError("a request holds token ids, not a text", "encode it: model.tokenizer.encode(text)")


TopLogprobs = tuple[tuple[int, float], ...]
"""(token, log-probability) of the likeliest tokens, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Event:
    """A step of one request: a new token, its end, or both.

    Args:
        token: None where a request ends without another one (a stop id, a cancellation).
        logprob, top_logprobs: as `SamplingParams.logprobs` asks for.
    """

    token: int | None
    logprob: float | None = None
    top_logprobs: TopLogprobs | None = None
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Result:
    """All that came of a request.

    Args:
        tokens: the new ones.
        logprobs: one for each of `tokens`; None where none were asked for. top_logprobs: likewise.
        finish_reason: "stop" (a stop id or string), "length" (max_new_tokens, or the end of the context) or
            "cancelled"; None while it goes on.
        stopped_by: the stop id or string.
    """

    tokens: list[int]
    logprobs: list[float] | None = None
    top_logprobs: list[TopLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
