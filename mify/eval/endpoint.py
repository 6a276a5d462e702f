"""Models behind HTTP: any OpenAI-compatible endpoint, and a GGUF file in llama.cpp's own server.

What a request that fails comes to stands in `mify.endpoint`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from mify.endpoint import PAUSES_S, Endpoint, RequestFailedError, chat_text, completion_text
from mify.errors import MifyError
from mify.eval.completers import OnCompletion, Prompt, Sampling, cut_at_stop


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
        self._endpoint = Endpoint(url, api_key=api_key, timeout=timeout, pauses=pauses)
        self.name = model
        self.identity: dict[str, Any] = {"name": model, "kind": "endpoint", "host": self._endpoint.host}
        self.can_infill, self.can_chat = suffix, True
        self._model, self._parallel = model, parallel

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
            return self._post("/chat/completions", body, chat_text)
        body["prompt"] = prompt.whole
        # OpenAI takes four stop strings at most; the rest are cut here.
        body["stop"] = list(sampling.stop[:4]) or None
        if prompt.suffix is not None:
            body["suffix"] = prompt.suffix
        return self._post("/completions", body, completion_text)

    def _post(self, path: str, body: dict[str, Any], read: Callable[[Any], str]) -> tuple[str, dict[str, Any]]:
        reply = self._endpoint.post(path, body, read)
        return reply.value, {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}


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
            return self._post("/chat/completions", body, chat_text)
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
    text = answer["content"]
    if not isinstance(text, str):
        raise TypeError(f"text expected, {type(text).__name__} found")
    return text
