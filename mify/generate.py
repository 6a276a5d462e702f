"""Prompts in, continuations out: the engine for those who want all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mify.engine import PAGE_SIZE, Engine, Request, SamplingParams
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model

MAX_BATCH = 256
_GRAPH_STEPS = 32  # to capture a step takes four that are not replayed


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    guesses: int = 0,
    cuda_graph: bool | None = None,
) -> list[list[int]]:
    """Continues a batch of prompts of any lengths.

    A sequence's randomness depends on the seed, its index and its position alone, not on its neighbours. For
    log-probabilities, streams or parameters of each prompt's own, see `mify.engine.Engine`.

    Args:
        model: with its weights on the device to run on; its tokenizer is needed only for `stop`.
        prompts: token ids, none empty.
        max_new_tokens, temperature, top_p, top_k, min_p, stop_ids, stop: see `mify.engine.SamplingParams`.
        guesses, cuda_graph: see `mify.engine.Engine`; cuda_graph None is yes on a GPU for 32 tokens and more.

    Returns:
        The new tokens of each prompt.

    Raises:
        MifyError: a prompt that is empty, too long or names unknown tokens, or an option out of range.
    """
    requests = [
        Request(
            prompt,
            SamplingParams(max_new_tokens, temperature, top_k, top_p, min_p, request_seed(seed, index), stop, stop_ids),
        )
        for index, prompt in enumerate(prompts)
    ]
    if cuda_graph is None:
        cuda_graph = model.head_weight.is_cuda and max_new_tokens >= _GRAPH_STEPS
    longest = sorted((len(prompt) + max_new_tokens for prompt in prompts), reverse=True)[:MAX_BATCH]
    engine = Engine(
        model,
        max_sequences=max(1, len(longest)),
        kv_tokens=sum(min(tokens, model.config.context) + 2 * PAGE_SIZE for tokens in longest),
        guesses=guesses,
        cuda_graph=cuda_graph,
    )
    return [result.tokens for result in engine.run(requests)]


def request_seed(seed: int, index: int) -> int:
    """The seed of the prompt `index` of a batch that has one seed."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 1) % 2**63


def stream_text(
    model: Model, prompt: str | Sequence[int], params: SamplingParams, *, skip_special: bool = False
) -> Iterator[str]:
    """The continuation of one prompt in pieces of text as they come, see `Engine.stream`, in an engine of its own.

    Args:
        prompt: a text, or token ids. skip_special: leave special tokens out of the text.
    """
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids and tokenizer.eot_id is not None:
        ids = [tokenizer.eot_id]  # a text begins where another has ended
    tokens = min(len(ids) + params.max_new_tokens, model.config.context) + 2 * PAGE_SIZE
    graph = model.head_weight.is_cuda and params.max_new_tokens >= _GRAPH_STEPS
    engine = Engine(model, max_sequences=1, kv_tokens=tokens, cuda_graph=graph)
    return engine.stream(Request(ids, params), skip_special=skip_special)


def infill_prompt(model: Model, prefix: str, suffix: str, max_new_tokens: int) -> list[int]:
    """The ids that ask for the text between prefix and suffix, in prefix-suffix-middle order.

    Where the context is too short for both and the answer, what is farthest from the gap is left out.
    """
    tokenizer = model.require_tokenizer()
    room = model.config.context - max_new_tokens
    return crop_infill(tokenizer.encode_fim(prefix, suffix), tokenizer.fim_suffix_id, room)


def crop_infill(prompt: list[int], suffix_id: int | None, room: int) -> list[int]:
    """A PSM prompt `<prefix> P <suffix> S <middle>` of at most `room` tokens: the end of P and the beginning of S.

    The prefix keeps at least half of the room, since it says more about what follows. Raises MifyError when not even
    two tokens of text fit.
    """
    if len(prompt) <= room:
        return prompt
    split = prompt.index(suffix_id)  # type: ignore[arg-type]
    before, after = prompt[1:split], prompt[split + 1 : -1]
    text = room - 3
    if text < 2:
        raise MifyError(
            f"an infilling prompt of {len(prompt)} tokens has to fit into {room}",
            "lower max_new_tokens: prompt and answer share the context",
        )
    keep_after = min(len(after), max(text // 2, text - len(before)))
    before = before[len(before) - min(len(before), text - keep_after) :]
    return [prompt[0], *before, prompt[split], *after[:keep_after], prompt[-1]]
