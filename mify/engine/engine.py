"""Many requests on one model at a time: they go in whenever they come, and come out token by token.

    engine = Engine(model)
    for event in engine.submit(Request(ids)): …        one request, token by token; leaving the loop early cancels it
    for piece in engine.stream(Request(ids)): …        the same as text
    results = engine.run(requests)                     many, all at once

Keys and values lie in pages of one pool (Kwon et al. 2023, arXiv 2309.06180); every pass carries the next token of all
running requests and pieces of the prompts of others (`scheduler`). On a GPU passes of single tokens are CUDA graphs
(`runner`). What a request gets depends on its prompt and its parameters, not on who runs beside it; a batch of another
size may round sums differently, which shows only where two tokens are equally likely to the last digits.

An engine belongs to one thread. The weights may change while no request is in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mify.errors import MifyError

from . import sampling
from .cache import FP8, PagedCache
from .lookup import Lookup
from .pages import Pages
from .request import Event, FinishReason, Request, Result, TopLogprobs
from .runner import SMALL, Runner
from .scheduler import Generation, Piece, Scheduler
from .text import StopStrings, TextPieces

if TYPE_CHECKING:
    from mify.model import Model

PAGE_SIZE = 16
MAX_GUESSES = SMALL - 1


class Stream(Iterator[Event]):
    """The events of one request as they come. To ask for the next one runs the engine, others' requests too.

    Leaving a `with` block, or losing the last reference to it, cancels what has not ended.
    """

    def __init__(self, engine: Engine, generation: Generation) -> None:
        self._engine, self._generation = engine, generation
        weakref.finalize(self, _leave, generation)

    @property
    def result(self) -> Result:
        """What came so far; complete once its `finish_reason` is set."""
        return self._generation.result

    def __next__(self) -> Event:
        events = self._generation.events
        while not events:
            if self.result.finish_reason is not None:
                raise StopIteration
            self._engine.step()
        return events.popleft()

    def cancel(self) -> None:
        """Ends the request, if it goes on, and gives its pages back at once."""
        if self.result.finish_reason is None:
            self._engine._cancel(self._generation)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _text(stream: Stream, pieces: TextPieces) -> Iterator[str]:
    with stream:
        for event in stream:
            if event.token is not None and (piece := pieces.push(event.token)):
                yield piece
        if piece := pieces.end():
            yield piece


def _leave(generation: Generation) -> None:
    generation.abandoned = True


class Engine:
    """Args:
    model: with its weights on the device to run on; its tokenizer is needed only for stop strings.
    max_sequences: running at a time; others wait.
    kv_tokens: that the pool of keys and values holds. None: on a GPU what fits into 85% of its free memory, on a CPU
        what `max_sequences` requests of the whole context take, at most 1 GiB.
    kv_dtype: of keys and values: None is that of the weights, else `torch.float8_e4m3fn`.
    kv_scales: (2, layers, Hkv), see `PagedCache`.
    step_tokens: in one pass: the next tokens of all running requests, and pieces of prompts in what is left.
    guesses: tokens that are guessed at most from what a request has said (`lookup`); 0 is off. The result is the same.
    cuda_graph: None is yes on a GPU.

    Raises:
        MifyError: an option that cannot be meant, or a model and a pool that do not fit.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_sequences: int = 256,
        kv_tokens: int | None = None,
        kv_dtype: torch.dtype | None = None,
        kv_scales: Tensor | None = None,
        page_size: int = PAGE_SIZE,
        step_tokens: int | None = None,
        guesses: int = 0,
        cuda_graph: bool | None = None,
    ) -> None:
        device, dtype = model.head_weight.device, model.head_weight.dtype
        if max_sequences < 1:
            raise MifyError(f"max_sequences is {max_sequences}", "give 1 or more")
        if page_size < 16 or page_size & (page_size - 1):
            raise MifyError(f"page_size is {page_size}", "give a power of two, 16 or more: the kernels read pages so")
        if step_tokens is None:
            step_tokens = max(2048 if device.type != "cpu" else 512, max_sequences)
        if step_tokens < max_sequences:
            raise MifyError(
                f"step_tokens is {step_tokens}, and {max_sequences} requests may run, which need a token each",
                "raise step_tokens or lower max_sequences",
            )
        if guesses < 0 or guesses > MAX_GUESSES:
            raise MifyError(f"guesses is {guesses}", f"give 0 (none) to {MAX_GUESSES}")
        if kv_dtype not in (None, dtype, FP8):
            raise MifyError(f"kv_dtype is {kv_dtype}, and the weights are {dtype}", f"give None or {FP8}")
        if cuda_graph and device.type != "cuda":
            raise MifyError(f"cuda_graph asks for a GPU, and the model is on {device}", "leave cuda_graph out")
        self.model = model
        kv_dtype = dtype if kv_dtype is None else kv_dtype
        if kv_tokens is None:
            kv_tokens = _room(model, max_sequences, kv_dtype)
        self._pages = Pages(max(1, kv_tokens // page_size), page_size)
        cache = PagedCache(model, self._pages.count, page_size, max_sequences, dtype=kv_dtype, scales=kv_scales)
        self._scheduler = Scheduler(
            self._pages, cache, max_sequences=max_sequences, step_tokens=step_tokens, guesses=guesses
        )
        graph = device.type == "cuda" if cuda_graph is None else cuda_graph
        rows = min(step_tokens, max_sequences * (1 + guesses))
        self._runner = Runner(model, cache, max_rows=rows, graph=graph)
        self._guesses = guesses

    # ---- what goes in and comes out

    def submit(self, request: Request) -> Stream:
        """Takes a request in. Nothing is computed until its stream, another's or `step` is asked.

        Raises:
            MifyError: a prompt that is empty, too long or names unknown tokens, a request that the whole pool has no
                room for, stop strings without a tokenizer.
        """
        generation = self._generation(request)
        if len(generation.tokens) < generation.limit:
            self._scheduler.add(generation)
        else:
            generation.result.finish_reason = "length"
        return Stream(self, generation)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Continues all of them and returns their results in their order. Raises as `submit`, before anything runs."""
        streams: list[Stream] = []
        try:
            for index, request in enumerate(requests):
                try:
                    streams.append(self.submit(request))
                except MifyError as error:
                    raise MifyError(f"request {index}: {error.problem}", error.remedy) from None
            while any(stream.result.finish_reason is None for stream in streams):
                self.step()
        finally:
            for stream in streams:
                stream.cancel()
        return [stream.result for stream in streams]

    def stream(self, request: Request, *, skip_special: bool = False) -> Iterator[str]:
        """Takes a request in and returns its continuation as text in pieces, as they come, none of them empty.

        A piece holds whole characters, and nothing that may be the beginning of a stop string; the text ends before the
        first of those. Closing the iterator, or losing it, cancels the request.

        Args:
            skip_special: leave special tokens out of the text.

        Raises:
            MifyError: as `submit`, or a model without a tokenizer.
        """
        pieces = TextPieces(self.model.require_tokenizer(), request.params.stop, skip_special=skip_special)
        return _text(self.submit(request), pieces)

    @property
    def busy(self) -> bool:
        """Whether a request is in it."""
        return bool(self._scheduler.waiting or self._scheduler.running)

    @property
    def pages(self) -> int:
        """Pages of the pool."""
        return self._pages.count

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return self._pages.free

    @property
    def preemptions(self) -> int:
        """How often a request had to give its pages back and wait."""
        return self._scheduler.preemptions

    @torch.inference_mode()
    def step(self) -> None:
        """One pass, whose tokens go to their streams; nothing where no request is in it.

        Raises:
            MifyError: logits that are NaN or infinite. Their request is cancelled, the others go on.
        """
        for one in [*self._scheduler.waiting, *self._scheduler.running]:
            if one.abandoned:
                self._cancel(one)
        pieces = self._scheduler.schedule()
        if not pieces:
            return
        try:
            deciding, logits = self._runner(pieces)
        except BaseException:
            self._scheduler.restart()  # what the cache holds now is not known
            raise
        for piece in pieces:
            piece.of.cached = piece.start + piece.count
        if deciding:
            self._take(deciding, logits)

    # ---- inside

    def _generation(self, request: Request) -> Generation:
        config, params = self.model.config, request.params
        ids = [int(token) for token in request.ids]
        if not ids:
            raise MifyError("the prompt is empty", "give at least one token, such as end-of-text")
        if len(ids) >= config.context:
            raise MifyError(
                f"the prompt has {len(ids)} tokens; the context of {config.name} is {config.context}",
                "shorten the prompt so that room is left for an answer",
            )
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            raise MifyError(
                f"the prompt contains a token outside 0 to {config.vocab_size - 1}",
                "encode it with the tokenizer of this model",
            )
        limit = min(len(ids) + params.max_new_tokens, config.context)
        # The last token is never cached.
        if self._pages.needed(limit - 1) > self._pages.count:
            raise MifyError(
                f"a request of {len(ids)} + {params.max_new_tokens} tokens can never fit: the engine's keys and values "
                f"have room for {self._pages.count * self._pages.page_size}",
                "raise kv_tokens, or ask for fewer tokens",
            )
        stop_ids = params.stop_ids
        if stop_ids is None:
            from mify.export.weights import conventions_of

            stop_ids = conventions_of(self.model).eos_ids
        new = limit - len(ids)
        logprobs = params.logprobs
        return Generation(
            result=Result([], None if logprobs is None else [], [] if logprobs else None),
            tokens=ids,
            prompt=len(ids),
            limit=limit,
            params=params,
            stop_ids=frozenset(stop_ids),
            stop=StopStrings(self.model.require_tokenizer(), params.stop) if params.stop else None,
            draws=sampling.uniforms(params.seed, len(ids), new) if params.temperature > 0 and new > 0 else None,
            lookup=Lookup() if self._guesses else None,
        )

    def _take(self, pieces: list[Piece], logits: Tensor) -> None:
        """Chooses the next token of each piece, and as many more as its guesses were right about."""
        owners = [(piece, index) for piece in pieces for index in range(1 + len(piece.guesses))]
        draws = [
            0.0 if piece.of.draws is None else float(piece.of.draws[len(piece.of.tokens) - piece.of.prompt + index])
            for piece, index in owners
        ]
        chosen = sampling.choose(logits, [piece.of.params for piece, _ in owners], draws)
        top = max((piece.of.params.logprobs for piece in pieces if piece.of.params.logprobs is not None), default=None)
        scores = None
        if top is not None:
            scores = [x.tolist() for x in sampling.logprobs_of(logits, chosen.clamp(min=0), top)]
        tokens: list[int] = chosen.tolist()
        at = 0
        failed: list[Generation] = []
        for piece in pieces:
            for index in range(1 + len(piece.guesses)):
                token = tokens[at + index]
                if token == sampling.BAD:
                    failed.append(piece.of)
                    break
                if self._append(piece.of, token, *_scores(piece.of, scores, at + index)):
                    break
                if index == len(piece.guesses) or token != piece.guesses[index]:
                    break
                piece.of.cached += 1  # the guess was right: what follows from it is computed already
            at += 1 + len(piece.guesses)
        for one in failed:
            self._cancel(one)
        if failed:
            raise MifyError(
                f"the logits behind token {len(failed[0].tokens)} of a request are NaN or infinite",
                "the weights hold such values, or overflow in this dtype: load them in float32, or an earlier "
                "checkpoint",
            )

    def _append(self, one: Generation, token: int, logprob: float | None, likeliest: TopLogprobs | None) -> bool:
        """Hands a new token out; whether the request has ended with it."""
        result = one.result
        one.tokens.append(token)
        reason: FinishReason | None = None
        returned = True
        if token in one.stop_ids:
            reason, result.stopped_by, returned = "stop", token, one.params.keep_stop_id
        elif one.stop is not None and (text := one.stop.push(token)) is not None:
            reason, result.stopped_by = "stop", text
        elif len(one.tokens) >= one.limit:
            reason = "length"
        if returned:
            result.tokens.append(token)
            if result.logprobs is not None and logprob is not None:
                result.logprobs.append(logprob)
            if result.top_logprobs is not None and likeliest is not None:
                result.top_logprobs.append(likeliest)
            one.events.append(Event(token, logprob, likeliest, reason))
        else:
            one.events.append(Event(None, finish_reason=reason))
        if reason is not None:
            self._end(one, reason)
        return reason is not None

    def _end(self, one: Generation, reason: FinishReason) -> None:
        self._scheduler.remove(one)
        one.result.finish_reason = reason

    def _cancel(self, one: Generation) -> None:
        one.events.append(Event(None, finish_reason="cancelled"))
        self._end(one, "cancelled")


def _scores(one: Generation, scores: list[list[Any]] | None, at: int) -> tuple[float | None, TopLogprobs | None]:
    wanted = one.params.logprobs
    if scores is None or wanted is None:
        return None, None
    own, values, ids = (part[at] for part in scores)
    return own, tuple(zip(ids[:wanted], values[:wanted], strict=True)) if wanted else None


def _room(model: Model, max_sequences: int, dtype: torch.dtype) -> int:
    """Tokens that the pool holds where nobody says."""
    config = model.config
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    device = model.head_weight.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        most = int(0.85 * free) // token
    else:
        most = (1 << 30) // token
    return max(config.context, min(most, max_sequences * config.context))
