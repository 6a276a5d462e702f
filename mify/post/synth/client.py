"""Asks endpoints for what the ledger does not hold yet: many requests at a time, at the pace each endpoint allows."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mify.endpoint import PAUSES_S, Endpoint, Pacer, RequestFailedError
from mify.errors import MifyError
from mify.post.synth.account import CHARACTERS_A_TOKEN, Account, Price
from mify.post.synth.ledger import Ledger
from mify.post.synth.samples import digest


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """A model behind an address.

    Args:
        url: as OpenAI clients take it, ending in /v1.
        model: the name to ask for. It is part of a request's key, the address is not: a model may move.
        api_key_variable: the environment variable that holds the key.
        parallel: requests at a time. timeout_s: without a byte, until a try is given up.
        pauses_s: before each further try, unless the endpoint asks for another wait.
        requests_per_minute, tokens_per_minute: the endpoint's limits.
        price: for a million tokens.
        stream: ask for the answer in pieces, so that a proxy sees bytes during a long one.
        structured: how a judge's answer is held to its form: "json_schema" (OpenAI, vLLM, llama.cpp), "json_object", or
            "none" where the endpoint knows neither.
    """

    url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    parallel: int = 8
    timeout_s: float = 300.0
    pauses_s: tuple[float, ...] = PAUSES_S
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    price: Price = field(default_factory=Price)
    stream: bool = False
    structured: str = "json_schema"


@dataclass(frozen=True)
class Request:
    """One question to a chat endpoint.

    Args:
        endpoint: its name in the recipe. model: what it is asked for.
        messages: (role, text) in turn.
        max_new_tokens, temperature, top_p, seed: of sampling; another seed makes another request.
        response_format: OpenAI's field of that name.
    """

    endpoint: str
    model: str
    messages: tuple[tuple[str, str], ...]
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0
    response_format: str = ""

    @cached_property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in self.messages],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        if self.response_format:
            body["response_format"] = json.loads(self.response_format)
        return body

    @cached_property
    def key(self) -> str:
        """A hash of what is asked."""
        return digest("chat", self.body)

    @property
    def prompt_bytes(self) -> int:
        return sum(len(text.encode("utf-8", "surrogatepass")) for _, text in self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to: a text and why it ended ("stop", "length"), or a problem."""

    text: str | None
    finish: str = ""
    problem: str = ""


class Client:
    """The endpoints of a recipe, asked through one ledger and one account."""

    def __init__(
        self,
        endpoints: Mapping[str, EndpointConfig],
        ledger: Ledger,
        account: Account,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._configs, self._ledger, self._account = endpoints, ledger, account
        self._environment = os.environ if environment is None else environment
        self._endpoints: dict[str, Endpoint] = {}
        self._problems: dict[str, str] = {}  # key → why this run has no answer

    def model(self, endpoint: str) -> str:
        """The model behind a name of the recipe."""
        return self._configs[endpoint].model

    def structured(self, endpoint: str) -> str:
        """How its answers are held to a form."""
        return self._configs[endpoint].structured

    def ask(self, requests: Iterable[Request], progress: Callable[[int, int], None] | None = None) -> None:
        """Sees to it that each request has an answer in the ledger, or a problem that `answer` tells.

        Requests that failed in this run before are not tried again by it. Requests with equal keys are sent once.

        Raises:
            BudgetReachedError: the ceiling. MifyError: an endpoint refuses address, key or model. In both cases the
                answers of requests that were on their way are waited for and kept.
        """
        wanted: dict[str, list[Request]] = {}
        seen: set[str] = set()
        for request in requests:
            if request.key not in seen and request.key not in self._ledger and request.key not in self._problems:
                wanted.setdefault(request.endpoint, []).append(request)
            seen.add(request.key)
        total = sum(map(len, wanted.values()))
        stop = threading.Event()
        lock = threading.Lock()
        done = 0

        def work(queue: Iterator[Request]) -> None:
            nonlocal done
            try:
                while not stop.is_set():
                    with lock:
                        request = next(queue, None)
                    if request is None:
                        return
                    self._one(request)
                    with lock:
                        done += 1
                        if progress is not None:
                            progress(done, total)
            except BaseException:
                stop.set()
                raise

        threads = [
            (queue, min(self._configs[name].parallel, len(found)))
            for name, found in wanted.items()
            for queue in [iter(found)]
        ]
        if not threads:
            return
        with ThreadPoolExecutor(sum(count for _, count in threads), thread_name_prefix="synth") as pool:
            futures = [pool.submit(work, queue) for queue, count in threads for _ in range(count)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                stop.set()
                raise

    def answer(self, request: Request) -> Answer:
        """What `ask` got."""
        if request.key in self._problems:
            return Answer(None, problem=self._problems[request.key])
        found = self._ledger.answer(request.key)
        if "failed" in found:
            return Answer(None, problem=str(found["failed"]))
        return Answer(found["text"], found["finish"])

    def is_final(self, request: Request) -> bool:
        """Whether nothing is gained by asking again."""
        return request.key not in self._problems

    def _one(self, request: Request) -> None:
        config, ledger = self._configs[request.endpoint], self._ledger
        worst = self._account.set_aside(
            request.endpoint, request.prompt_bytes, request.max_new_tokens, len(request.messages)
        )
        cost = 0.0
        try:
            ledger.sending(request.key, request.endpoint, worst)
            estimate = request.prompt_bytes // CHARACTERS_A_TOKEN + request.max_new_tokens
            body = {**request.body, "stream": True, "stream_options": {"include_usage": True}}
            try:
                reply = self._endpoint(request.endpoint).post(
                    "/chat/completions", body if config.stream else request.body, _read, tokens=estimate,
                    key=request.key,
                )  # fmt: skip
            except RequestFailedError as error:
                if error.final:
                    failed = {"failed": str(error), "tries": error.tries}
                    ledger.answered(request.key, request.endpoint, 0.0, request.body, failed)
                else:
                    ledger.gave_up(request.key, str(error), error.tries)
                    self._problems[request.key] = str(error)
                return
            except MifyError as error:
                ledger.gave_up(request.key, error.problem, 1)
                raise
            text, finish = reply.value
            prompt, new = reply.prompt_tokens, reply.new_tokens
            guessed = prompt is None or new is None
            if prompt is None or new is None:
                prompt, new = request.prompt_bytes // CHARACTERS_A_TOKEN, len(text) // CHARACTERS_A_TOKEN
            cost = config.price.of(prompt, new)
            answer = {"text": text, "finish": finish, "prompt_tokens": prompt, "new_tokens": new, "tries": reply.tries}
            ledger.answered(request.key, request.endpoint, cost, request.body, answer | {"guessed": guessed})
        finally:
            self._account.settle(worst, cost)

    def _endpoint(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            config = self._configs[name]
            self._endpoints.setdefault(
                name,
                Endpoint(
                    config.url,
                    api_key=self._environment.get(config.api_key_variable),
                    timeout=config.timeout_s,
                    pauses=config.pauses_s,
                    pacer=Pacer(config.requests_per_minute, config.tokens_per_minute),
                ),
            )
        return self._endpoints[name]


def check_endpoints(endpoints: Mapping[str, EndpointConfig]) -> None:
    """Raises `MifyError` for a value that no endpoint can have."""
    for name, config in endpoints.items():
        if config.structured not in ("json_schema", "json_object", "none"):
            raise MifyError(
                f"endpoints.{name}.structured = {config.structured!r} is not known", "json_schema, json_object or none"
            )
        for key in ("parallel", "requests_per_minute", "tokens_per_minute", "timeout_s"):
            value = getattr(config, key)
            if value is not None and value <= 0:
                raise MifyError(f"endpoints.{name}.{key} = {value}", "give a number above 0")
        if min(config.price.input, config.price.output) < 0:
            raise MifyError(f"endpoints.{name}.price is below 0", "give what a million tokens cost")


def endpoint_names(endpoints: Mapping[str, EndpointConfig], wanted: Sequence[str], where: str) -> None:
    """Raises `MifyError` for a name that no endpoint of the recipe has."""
    for name in wanted:
        if name not in endpoints:
            raise MifyError(
                f"{where} asks the endpoint {name!r}, which the recipe does not have",
                f"known here: {', '.join(endpoints) or 'none'}",
            )


def _read(answer: Any) -> tuple[str, str]:
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"text expected, {type(text).__name__} found")
    return text, str(choice.get("finish_reason") or "")
