"""Generation: batched decoding over a static key/value cache, greedy or sampled with a seed of its own per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mify.decoding import DecodeStep, KVCache
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model


@torch.inference_mode()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    cuda_graph: bool | None = None,
) -> list[list[int]]:
    """Continues a batch of prompts of any lengths.

    A sequence's randomness depends on the seed, its index and its position alone, not on its neighbours.

    Args:
        model: with its weights on the device to run on; its tokenizer is needed only for `stop`.
        prompts: token ids, none empty.
        max_new_tokens: at most so many tokens per prompt; fewer where the context ends.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it before sampling.
        top_k: sample among the k likeliest tokens; 0 is all.
        top_p: sample among the fewest tokens whose probabilities reach it; 1 is all.
        seed: of the sampling.
        stop_ids: tokens that end a sequence and are not returned; None is those that the model's file names, else the
            vocabulary's ends of text and of a chat turn.
        stop: strings that end a sequence; the token that completes one is still returned.
        cuda_graph: replay each step as a CUDA graph; None is yes on a GPU for 32 tokens and more, since to capture it
            takes four steps that are not replayed.

    Returns:
        The new tokens of each prompt.

    Raises:
        MifyError: a prompt that is empty, too long or names unknown tokens, or an option out of range.
    """
    config = model.config
    _check(model, prompts, max_new_tokens, temperature, top_p, top_k)
    if stop_ids is None:
        from mify.export.weights import conventions_of

        stop_ids = conventions_of(model).eos_ids
    if not prompts or max_new_tokens == 0:
        return [[] for _ in prompts]
    device = model.head_weight.device
    lengths = [len(prompt) for prompt in prompts]
    limits = [min(max_new_tokens, config.context - length) for length in lengths]
    graph = _as_graph(cuda_graph, device, max(limits))
    cache = KVCache(model, len(prompts), max(a + b for a, b in zip(lengths, limits, strict=True)))
    generators = [torch.Generator().manual_seed(_seed_of(seed, index)) for index in range(len(prompts))]

    cache.write_prompts(lengths)
    with torch.inference_mode(False):  # so that its values are read once and not by every layer
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    hidden = model(tokens, cache.columns, bounds, max(lengths), cache)
    logits = model.logits(hidden[bounds[1:].long() - 1])

    done: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # prompts that go on
    rows = list(alive)  # and their rows in the cache
    step: DecodeStep | None = None
    while True:
        heeded = torch.tensor(rows, device=device)
        chosen = _sample(logits[heeded], [generators[i] for i in alive], temperature, top_p, top_k).to(device)
        going = []
        for at, token in enumerate(chosen.tolist()):
            index = alive[at]
            if token in stop_ids:
                continue
            done[index].append(token)
            if len(done[index]) < limits[index] and not (stop and _stopped(model, done[index], stop)):
                going.append(at)
        if not going:
            return done
        kept = torch.tensor(going, device=device)
        chosen, heeded = chosen[kept], heeded[kept]
        alive, rows = [alive[at] for at in going], [rows[at] for at in going]
        # A captured step has one batch size: who has ended goes on in it unheeded, until half of the rows have.
        held = cache.lengths.shape[0]
        if len(alive) < held and (not graph or 2 * len(alive) <= held):
            cache.keep(heeded)
            rows, heeded, held, step = (
                list(range(len(alive))),
                torch.arange(len(alive), device=device),
                len(alive),
                None,
            )
        if step is None:
            step = DecodeStep(model, cache, graph=graph)
        logits = step(torch.zeros(held, dtype=torch.int64, device=device).index_copy_(0, heeded, chosen))


def generate_text(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> str:
    """The continuation of one prompt as text, cut before the first stop string."""
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids and tokenizer.eot_id is not None:
        ids = [tokenizer.eot_id]  # a text begins where another has ended
    new = generate(
        model, [ids], max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        seed=seed, stop=stop,
    )[0]  # fmt: skip
    text = tokenizer.decode(new)
    cuts = [text.find(s) for s in stop if s in text]
    return text[: min(cuts)] if cuts else text


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


def _check(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
) -> None:
    config = model.config
    if max_new_tokens < 0:
        raise MifyError(f"max_new_tokens is {max_new_tokens}", "give 0 or more")
    if not temperature >= 0:
        raise MifyError(f"temperature is {temperature}", "give 0 (greedy) or a positive number")
    if not 0 < top_p <= 1:
        raise MifyError(f"top_p is {top_p}", "give a number above 0 and at most 1")
    if top_k < 0:
        raise MifyError(f"top_k is {top_k}", "give 0 (all tokens) or a positive number")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise MifyError(f"prompt {index} is empty", "give at least one token, such as end-of-text")
        if len(prompt) >= config.context:
            raise MifyError(
                f"prompt {index} has {len(prompt)} tokens; the context of {config.name} is {config.context}",
                "shorten the prompt so that room is left for an answer",
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise MifyError(
                f"prompt {index} contains a token outside 0 to {config.vocab_size - 1}",
                "encode it with the tokenizer of this model",
            )


def _as_graph(wish: bool | None, device: torch.device, steps: int) -> bool:
    if wish and device.type != "cuda":
        raise MifyError(f"cuda_graph asks for a GPU, and the model is on {device}", "leave cuda_graph out")
    return device.type == "cuda" and steps >= 32 if wish is None else wish


def _seed_of(seed: int, index: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 1) % 2**63


def _sample(logits: Tensor, generators: list[torch.Generator], temperature: float, top_p: float, top_k: int) -> Tensor:
    """One token for each row of logits (B, V); on the CPU when sampling, so that every device draws alike."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float().cpu() / temperature
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    probabilities = torch.softmax(logits, -1)
    if top_p < 1:
        ordered, index = torch.sort(probabilities, stable=True, dim=-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(ordered).scatter_(-1, index, ordered)
    rows = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
    return torch.cat(rows)


def _stopped(model: Model, tokens: list[int], stop: Sequence[str]) -> bool:
    # A stop string ends in the newest token, so only the tail that can hold it is decoded: a token is at least a byte.
    longest = max(len(s.encode()) for s in stop)
    tail = model.require_tokenizer().decode(tokens[-(longest + 4) :])
    return any(s in tail for s in stop)
