"""Models behind HTTP: any OpenAI-compatible endpoint, and a GGUF file in llama.cpp's own server.

A request that fails for a passing reason (no connection, a time-out, 429, 5xx, an answer that is no answer) is tried
again with growing pauses; after that it is a counted failure with its reason in the records, never an empty completion.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import OnCompletion, Prompt, Sampling, cut_at_stop

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_HOPELESS = (401, 403, 404, 405)


class RequestFailedError(Exception):
    """One request that could not be answered; the others go on."""


class EndpointCompleter:
    """A model behind `{url}/completions` and `{url}/chat/completions`.

    Args:
        url: as OpenAI clients take it, ending in /v1.
        model: the name to ask for.
        api_key: sent as a bearer token.
        parallel: requests at a time. timeout: seconds for one request.
        suffix: whether the endpoint honours `suffix` in completions, so that infilling can be asked. Some ignore it
            without a word (llama.cpp's server does), so this is said by the user and not guessed.
        pauses: seconds before each further try.
    """

    fim_orders: tuple[str, ...] = ("psm",)  # whatever the endpoint's own order is: nothing can be asked for

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        parallel: int = 4,
        timeout: float = 300.0,
        suffix: bool = False,
        pauses: Sequence[float] = PAUSES_S,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise MifyError(f"{url!r} is no address of an endpoint", "give one such as http://127.0.0.1:8000/v1")
        self.name = model
        self.identity: dict[str, Any] = {"name": model, "kind": "endpoint", "host": parts.netloc}
        self.can_infill, self.can_chat = suffix, True
        self._url, self._model, self._key = url.rstrip("/"), model, api_key
        self._parallel, self._timeout, self._pauses = parallel, timeout, tuple(pauses)
        # A proxy of the environment is for the world, not for this machine.
        handlers = [urllib.request.ProxyHandler({})] if _is_local(parts.hostname or "") else []
        self._opener = urllib.request.build_opener(*handlers)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None:
        open_prompts = [prompt for prompt in prompts if prompt.key not in done]
        lock = threading.Lock()
        stop = threading.Event()

        def one(prompt: Prompt) -> None:
            if stop.is_set():
                return
            try:
                text, facts = self._ask(prompt, sampling)
                answer: str | None = cut_at_stop(text, sampling.stop)
            except RequestFailedError as error:
                answer, facts = None, {"error": str(error)}
            with lock:
                on_completion(prompt, answer, facts)

        with ThreadPoolExecutor(self._parallel, thread_name_prefix="endpoint") as pool:
            futures = [pool.submit(one, prompt) for prompt in open_prompts]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                stop.set()
                raise

    def _ask(self, prompt: Prompt, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed + prompt.key[1],
        }
        if prompt.chat:
            body["messages"] = prompt.messages
            return self._post(f"{self._url}/chat/completions", body, _chat_text)
        body["prompt"] = prompt.whole
        # OpenAI takes four stop strings at most; the rest are cut here.
        body["stop"] = list(sampling.stop[:4]) or None
        if prompt.suffix is not None:
            body["suffix"] = prompt.suffix
        return self._post(f"{self._url}/completions", body, _completion_text)

    def _post(self, url: str, body: dict[str, Any], read: Callable[[Any], str]) -> tuple[str, dict[str, Any]]:
        problem = ""
        for pause in (*self._pauses, None):
            try:
                answer = self._send(url, body)
                text = read(answer)
                usage = answer.get("usage") or {}
                return text, {"prompt_tokens": usage.get("prompt_tokens"), "new_tokens": usage.get("completion_tokens")}
            except urllib.error.HTTPError as error:
                detail = error.read(2000).decode("utf-8", "replace").strip()
                problem = f"HTTP {error.code}: {detail[:300]}"
                if error.code in _HOPELESS:
                    raise MifyError(f"{url} refused: {problem}", "check the address, the key and the model") from None
                if error.code != 429 and error.code < 500:
                    break  # this very request is wrong (too long, say): asking again changes nothing
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"an answer that is none ({type(error).__name__}: {error})"
            if pause is not None:
                time.sleep(pause)
        raise RequestFailedError(problem)

    def _send(self, url: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout) as answer:
            return json.load(answer)


class LlamaCppCompleter(EndpointCompleter):
    """A GGUF file in llama.cpp. A context manager: its server ends with the block.

    Greedy means argmax: temperature 0 alone would still sample in llama.cpp.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 1, parallel: int = 1, context: int = 2048
    ) -> None:
        from mify.export.llama_cpp import LlamaCpp
        from mify.files import sha256_file

        self._server = LlamaCpp(path, threads=threads, parallel=parallel, context=context, exact=False)
        super().__init__(self._server.url + "/v1", Path(path).name, parallel=parallel, timeout=1800.0)
        self.identity = {"name": self.name, "kind": "llama.cpp", "sha256": sha256_file(path)}
        self.can_infill = self._has_fim_tokens()
        self._context = context
        self.fim_orders = ("psm", "spm") if self.can_infill else ("psm",)

    def __enter__(self) -> LlamaCppCompleter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def _has_fim_tokens(self) -> bool:
        try:
            self._server.infill("a", "b", 1)
        except MifyError:
            return False
        return True

    def _laid_out(self, prompt: Prompt) -> str:
        """Special tokens written in the text are parsed by llama.cpp, where its vocabulary has them."""
        names = {name for name, _ in prompt.parts}
        if any(len(self._server.tokenize(name, parse_special=True)) != 1 for name in names):
            return prompt.whole
        return "".join(name + text for name, text in prompt.parts) + prompt.text

    def _spm(self, prefix: str, suffix: str, room: int) -> list[int]:
        from mify.eval.completers import fit_gap, infill_ids
        from mify.export.gguf_file import GgufFile

        fields = GgufFile(self._server.path).fields
        marks = [int(fields[f"tokenizer.ggml.fim_{name}_token_id"]) for name in ("pre", "suf", "mid")]
        server = self._server
        before, after = fit_gap(prefix, suffix, room - 3, server.tokenize, server.detokenize)
        return infill_ids(marks, server.tokenize(before), server.tokenize(after), "spm")

    def _ask(self, prompt: Prompt, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        body["seed"] = sampling.seed + prompt.key[1]
        if sampling.temperature == 0:
            body |= {"samplers": ["top_k"], "top_k": 1}
        if prompt.chat:
            body |= {"messages": prompt.messages, "max_tokens": sampling.max_new_tokens}
            return self._post(f"{self._url}/chat/completions", body, _chat_text)
        body |= {"n_predict": sampling.max_new_tokens, "stop": list(sampling.stop)}
        if prompt.suffix is None:
            return self._post(f"{self._server.url}/completion", {**body, "prompt": self._laid_out(prompt)}, _content)
        if sampling.fim_order == "spm":
            # llama.cpp has another SPM (suffix, prefix, middle token last) and only as a setting of the whole server.
            ids = self._spm(prompt.text, prompt.suffix, self._context - sampling.max_new_tokens)
            return self._post(f"{self._server.url}/completion", {**body, "prompt": ids}, _content)
        body |= {"input_prefix": prompt.text, "input_suffix": prompt.suffix}
        return self._post(f"{self._server.url}/infill", body, _content)


def _content(answer: Any) -> str:
    return _text(answer["content"])


def _chat_text(answer: Any) -> str:
    return _text(answer["choices"][0]["message"]["content"])


def _completion_text(answer: Any) -> str:
    return _text(answer["choices"][0]["text"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, {type(value).__name__} found")
    return value


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
