"""What a benchmark asks of a model: completions of prompts. One face for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model

BATCH = 32


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: a text to continue, or a gap between `text` and `suffix` to fill.

    Args:
        key: identifies the request (item, sample) in the records.
        text: what stands before.
        suffix: what stands behind the gap; None where there is none.
        chat: `text` is a user's message, to be put in the model's chat template.
    """

    key: tuple[str, int]
    text: str
    suffix: str | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to complete.

    Args:
        max_new_tokens: the longest completion.
        temperature: 0 is greedy.
        stop: strings that end a completion, cut before them.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Completer(Protocol):
    """A model that completes prompts.

    `complete` calls `on_completion(prompt, text, facts)` once for each prompt, in any order; prompts whose key is in
    `done` are known already. A prompt it cannot answer gets None for a text and the reason in facts["error"].
    """

    name: str
    identity: dict[str, Any]
    can_infill: bool

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: Callable[[Prompt, str | None, dict[str, Any]], None],
    ) -> None: ...


class MifyCompleter:
    """A `mify.Model`, in batches of similar length.

    The randomness of a completion depends on the seed and on the prompt's place in the sorted list alone, so a run
    that was killed continues with the completions that it would have had.
    """

    def __init__(self, model: Model, name: str, identity: dict[str, Any] | None = None) -> None:
        self.name = name
        self.identity = identity or {"name": name}
        self._model = model
        self._tokenizer = model.require_tokenizer()
        self.can_infill = self._tokenizer.fim_prefix_id is not None

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: Callable[[Prompt, str | None, dict[str, Any]], None],
    ) -> None:
        from mify.generate import generate

        if any(prompt.chat for prompt in prompts):
            raise MifyError(f"{self.name} has no chat template here", "use --prompt base")
        room = self._model.config.context - sampling.max_new_tokens
        if room < 16:
            raise MifyError(
                f"a context of {self._model.config.context} has no room for {sampling.max_new_tokens} new tokens",
                "give fewer with --max-new-tokens",
            )
        encoded = [(prompt, *self._encode(prompt, room)) for prompt in prompts]
        encoded.sort(key=lambda entry: (len(entry[1]), entry[0].key))
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            if all(prompt.key in done for prompt, _, _ in batch):
                continue
            answers = generate(
                self._model,
                [ids for _, ids, _ in batch],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed + start,
                stop=sampling.stop,
            )
            for (prompt, ids, cut), answer in zip(batch, answers, strict=True):
                if prompt.key not in done:
                    text = cut_at_stop(self._tokenizer.decode(answer, skip_special=True), sampling.stop)
                    facts = {"prompt_tokens": len(ids), "new_tokens": len(answer), "prompt_cut": cut}
                    on_completion(prompt, text, facts)

    def _encode(self, prompt: Prompt, room: int) -> tuple[list[int], int]:
        """Token ids of a prompt and how many tokens had to be left out to fit: from the far ends of the context."""
        if prompt.suffix is None:
            ids = self._tokenizer.encode(prompt.text) or [self._tokenizer.eot_id or 0]
            return ids[-room:], max(0, len(ids) - room)
        prefix, suffix = prompt.text, prompt.suffix
        ids = self._tokenizer.encode_fim(prefix, suffix)
        before = len(ids)
        if before > room:
            # Two thirds for what stands before: cut in characters, at the far ends, so that ids stay those of a text.
            prefix_ids, suffix_ids = self._tokenizer.encode(prefix), self._tokenizer.encode(suffix)
            keep_suffix = min(len(suffix_ids), max((room - 3) // 3, room - 3 - len(prefix_ids)))
            keep_prefix = room - 3 - keep_suffix
            prefix = self._tokenizer.decode(prefix_ids[-keep_prefix:]) if keep_prefix > 0 else ""
            suffix = self._tokenizer.decode(suffix_ids[:keep_suffix])
            ids = self._tokenizer.encode_fim(prefix, suffix)
            while len(ids) > room:  # a cut inside a character can cost a token or two more
                prefix = prefix[1:]
                ids = self._tokenizer.encode_fim(prefix, suffix)
        return ids, max(0, before - len(ids))


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(cuts)] if cuts else text
