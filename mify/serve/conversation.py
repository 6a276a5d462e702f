"""A conversation with a model: in llama.cpp, in mify itself, or behind an endpoint."""

from __future__ import annotations

import http.client
import json
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mify.chat import Message, chat_ids
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.model import Model


class Speaker(Protocol):
    """Answers a conversation, in pieces of text."""

    name: str

    def answer(
        self, messages: Sequence[Message], *, max_new_tokens: int, temperature: float, seed: int
    ) -> Iterator[str]: ...


class Conversation:
    """What was said so far. A turn that fails is forgotten, so that the next can be tried; of one that is broken off,
    what was heard is kept."""

    def __init__(
        self,
        speaker: Speaker,
        system: str | None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._speaker, self._system = speaker, system
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def say(self, text: str) -> Iterator[str]:
        """The answer to `text`, in pieces as they come."""
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            for piece in self._speaker.answer(asked, **self._options):
                answer += piece
                yield piece
        except (KeyboardInterrupt, GeneratorExit):
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": answer}]
            raise
        self.messages = [*asked, {"role": "assistant", "content": answer}]


class EndpointSpeaker:
    """A model behind `{url}/chat/completions`, streamed."""

    def __init__(self, url: str, model: str, *, api_key: str | None = None, name: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MifyError(f"{url!r} is no address of an endpoint", "give one such as http://127.0.0.1:8080/v1")
        self.name = name or parts.netloc
        self._url, self._model, self._key = url.rstrip("/"), model, api_key

    def answer(
        self, messages: Sequence[Message], *, max_new_tokens: int, temperature: float, seed: int
    ) -> Iterator[str]:
        parts = urllib.parse.urlsplit(self._url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=600)
        body: dict[str, Any] = {"model": self._model, "messages": list(messages), "max_tokens": max_new_tokens,
                                "temperature": temperature, "seed": seed, "stream": True}  # fmt: skip
        if temperature == 0:
            body["top_k"] = 1  # llama.cpp samples at temperature 0
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request("POST", f"{parts.path}/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise MifyError(
                    f"{self._url} refused: HTTP {answer.status}: {_said(answer.read())}", "change the request"
                )
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _delta(line[6:])
        except (OSError, http.client.HTTPException) as error:
            raise MifyError(f"{self._url} does not answer ({error})", "see that it runs") from None
        finally:
            connection.close()


class ModelSpeaker:
    """A model of mify's, in its own engine."""

    name = "mify"

    def __init__(self, model: Model) -> None:
        from mify.export.weights import conventions_of

        template = conventions_of(model).chat_template
        if template is None:
            raise MifyError(
                f"{model.config.name} has no chat template, and its vocabulary no turns", "mify generate continues text"
            )
        self._model, self._template = model, template

    def answer(
        self, messages: Sequence[Message], *, max_new_tokens: int, temperature: float, seed: int
    ) -> Iterator[str]:
        from mify.engine import SamplingParams
        from mify.generate import stream_text

        ids = chat_ids(self._model.require_tokenizer(), self._template, messages)
        params = SamplingParams(max_new_tokens, temperature, seed=seed)
        yield from stream_text(self._model, ids, params, skip_special=True)


@contextmanager
def open_speaker(
    model: str,
    *,
    engine: str = "auto",
    threads: int | None = None,
    endpoint_model: str | None = None,
    api_key_variable: str = "OPENAI_API_KEY",
) -> Iterator[Speaker]:
    """Whoever speaks for what a user calls a model.

    Raises:
        MifyError: an engine or a model that is not there.
    """
    if engine not in ("auto", "llama.cpp", "mify"):
        raise MifyError(f"the engine {engine!r} is unknown", "use auto, llama.cpp or mify")
    if model.startswith(("http://", "https://")):
        if endpoint_model is None:
            raise MifyError("an endpoint serves models by name", "give --endpoint-model NAME")
        yield EndpointSpeaker(model, endpoint_model, api_key=os.environ.get(api_key_variable))
        return
    if not Path(model).exists():
        raise MifyError(f"{model} does not exist", "give a GGUF file, a Hugging Face folder, a run or a checkpoint")
    from mify.serve.engines import choose_engine, installed_engines, prepare

    if engine == "llama.cpp" or (engine == "auto" and "llama.cpp" in installed_engines()):
        from mify.eval.open_model import free_cpus
        from mify.export.llama_cpp import LlamaCpp

        choose_engine("llama.cpp", is_gguf=Path(model).is_file(), has_gpu=False, installed=installed_engines())
        served = prepare(Path(model), "llama.cpp")
        with LlamaCpp(served.path, threads=threads or free_cpus(), exact=False) as server:
            yield EndpointSpeaker(f"{server.url}/v1", Path(model).name, name="llama.cpp")
        return
    from mify.loading import load

    yield ModelSpeaker(load(model))


def _delta(data: bytes) -> str:
    try:
        choice = json.loads(data)["choices"][0]
        return str(choice["delta"].get("content") or "")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return ""


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])[:300]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return data[:300].decode("utf-8", "replace")
