"""What a benchmark asks of a model: completions of prompts. One face for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mify.chat import chat_ids
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model

BATCH = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: a text to continue, or a gap between `text` and `suffix` to fill.

    Args:
        key: identifies the request (item, sample) in the records.
        text: what stands before.
        suffix: what stands behind the gap; None where there is none.
        chat: `text` is a user's message, to be put in the model's chat template.
        system: what stands in the system role before it; None leaves the template's own.
        parts: pairs of a special token and the text behind it, before `text`: a repository's name and files
            (`mify.data.repositories`).
    """

    key: tuple[str, int]
    text: str
    suffix: str | None = None
    chat: bool = False
    system: str | None = None
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def whole(self) -> str:
        """`text` behind its parts as plain text, for a vocabulary without their tokens: a comment stands for each."""
        return "".join(f"# {part}\n" for _, part in self.parts) + self.text

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat endpoints and templates take them."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to complete.

    Args:
        max_new_tokens: the longest completion.
        temperature: 0 is greedy.
        stop: strings that end a completion, cut before them.
        fim_order: of an infilling prompt: "psm" `<prefix> P <suffix> S <middle>`, or "spm", in the form StarCoder was
            trained on (Bavarian et al., arXiv 2207.14255, variant 2): `<prefix> <suffix> S <middle> P`.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    fim_order: str = "psm"


OnCompletion = Callable[[Prompt, str | None, dict[str, Any]], None]


class Completer(Protocol):
    """A model that completes prompts.

    `complete` calls `on_completion(prompt, text, facts)` once for each prompt, in any order; prompts whose key is in
    `done` are known already. A prompt it cannot answer gets None for a text and the reason in facts["error"].
    `fim_orders` are those it can be asked in, the usual one first.
    """

    name: str
    identity: dict[str, Any]
    can_infill: bool
    can_chat: bool
    fim_orders: tuple[str, ...]

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None: ...


class MifyCompleter:
    """A `mify.Model` in its engine, short prompts first.

    The randomness of a completion depends on the seed and on the prompt's place in the sorted list alone, so a run
    that was killed continues with the completions that it would have had.
    """

    fim_orders: tuple[str, ...] = ("psm", "spm")

    def __init__(self, model: Model, name: str, identity: dict[str, Any] | None = None) -> None:
        from mify.export.weights import conventions_of

        self.name = name
        self.identity = identity or {"name": name}
        self._model = model
        self._tokenizer = model.require_tokenizer()
        self.can_infill = self._tokenizer.fim_prefix_id is not None
        self._template = conventions_of(model).chat_template
        self.can_chat = self._template is not None

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None:
        from mify.engine import Engine, Request, SamplingParams, Stream
        from mify.generate import request_seed

        room = self._model.config.context - sampling.max_new_tokens
        if room < 16:
            raise MifyError(
                f"a context of {self._model.config.context} has no room for {sampling.max_new_tokens} new tokens",
                "give fewer with --max-new-tokens",
            )
        encoded = [(prompt, *self._encode(prompt, room, sampling.fim_order)) for prompt in prompts]
        encoded.sort(key=lambda entry: (len(entry[1]), entry[0].key))
        engine = Engine(self._model, max_sequences=BATCH)
        running: list[tuple[Stream, Prompt, int, int]] = []
        for place, (prompt, ids, cut) in enumerate(encoded):
            if prompt.key not in done:
                params = SamplingParams(
                    sampling.max_new_tokens, sampling.temperature, top_p=sampling.top_p,
                    seed=request_seed(sampling.seed, place), stop=sampling.stop,
                )  # fmt: skip
                running.append((engine.submit(Request(ids, params)), prompt, len(ids), cut))
        while running:
            engine.step()
            going = []
            for stream, prompt, count, cut in running:
                if stream.result.finish_reason is None:
                    going.append((stream, prompt, count, cut))
                    continue
                answer = stream.result.tokens
                text = cut_at_stop(self._tokenizer.decode(answer, skip_special=True), sampling.stop)
                on_completion(prompt, text, {"prompt_tokens": count, "new_tokens": len(answer), "prompt_cut": cut})
            running = going

    def _encode(self, prompt: Prompt, room: int, order: str) -> tuple[list[int], int]:
        """Token ids of a prompt and how many tokens had to be left out to fit: from the far ends of the context."""
        if prompt.chat:
            ids = chat_ids(self._tokenizer, self._template or "", prompt.messages)
            return ids[-room:], max(0, len(ids) - room)
        if prompt.suffix is None:
            ids = self._plain(prompt) or [self._tokenizer.eot_id or 0]
            return ids[-room:], max(0, len(ids) - room)
        tokenizer = self._tokenizer
        before = len(tokenizer.encode_fim(prompt.text, prompt.suffix))
        prefix, suffix = fit_gap(prompt.text, prompt.suffix, room - 3, tokenizer.encode, tokenizer.decode)
        ids = tokenizer.encode_fim(prefix, suffix)
        if order == "spm":
            names = (tokenizer.fim_prefix_id, tokenizer.fim_suffix_id, tokenizer.fim_middle_id)
            marks = tuple(index for index in names if index is not None)
            ids = infill_ids(marks, tokenizer.encode(prefix), tokenizer.encode(suffix), order)
        return ids, max(0, before - len(ids))

    def _plain(self, prompt: Prompt) -> list[int]:
        special, encode = self._tokenizer.special, self._tokenizer.encode
        if not all(name in special for name, _ in prompt.parts):
            return encode(prompt.whole)
        if not prompt.parts:
            return encode(prompt.text)
        *files, (last, path) = prompt.parts
        ids = [index for name, text in files for index in (special[name], *encode(text))]
        return [*ids, special[last], *encode(path + prompt.text)]


def infill_ids(marks: Sequence[int], prefix: Sequence[int], suffix: Sequence[int], order: str) -> list[int]:
    """An infilling prompt in the given order.

    Args:
        marks: the ids of the prefix, suffix and middle tokens. prefix, suffix: ids of the texts around the gap.
    """
    before, behind, middle = marks
    if order == "spm":
        return [before, behind, *suffix, middle, *prefix]
    return [before, *prefix, behind, *suffix, middle]


def fit_gap(
    prefix: str,
    suffix: str,
    room: int,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> tuple[str, str]:
    """Prefix and suffix cut at their far ends so that both together have at most `room` tokens.

    A third is kept for the suffix, more where the prefix needs less. It is texts that are cut, so that their ids are
    those of a text.
    """
    before, after = encode(prefix), encode(suffix)
    if len(before) + len(after) <= room:
        return prefix, suffix
    keep_after = min(len(after), max(room // 3, room - len(before)))
    keep_before = min(len(before), room - keep_after)
    prefix = decode(before[-keep_before:]) if keep_before else ""
    suffix = decode(after[:keep_after])
    while prefix and len(encode(prefix)) + len(encode(suffix)) > room:
        prefix = prefix[1:]  # a cut inside a character can cost a token or two more
    return prefix, suffix


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(cuts)] if cuts else text
