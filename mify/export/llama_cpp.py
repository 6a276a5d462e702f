"""A real llama.cpp in this process: its server on a loopback port, set so that its numbers can be compared.

llama.cpp's defaults (KV cache in F16, flash attention on) move logits by 1.5e-2 against plain fp32; with both off it
agrees to 1.4e-5 and greedy tokens are equal. The package is `xllamacpp`, imported when a server starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mify.errors import MifyError


def available() -> bool:
    """Whether `xllamacpp` is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A GGUF file loaded by llama.cpp. A context manager: the server ends with the block.

    Args:
        path: the GGUF file.
        context: tokens of context; None is what the file says.
        threads: CPU threads. More than the free cores makes llama.cpp collapse.
        exact: KV cache in F32 and flash attention off, to compare with fp32; False leaves llama.cpp's defaults.
        parallel: requests served at the same time; each gets `context` tokens.
        verbose: let llama.cpp log to stderr.
        host, port: where the HTTP server listens; port 0 takes a free one.
        name: what the endpoint calls the model.

    Raises `MifyError` where `xllamacpp` is missing or llama.cpp does not load the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int | None = None,
        threads: int = 1,
        exact: bool = True,
        parallel: int = 1,
        verbose: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
    ) -> None:
        if not available():
            raise MifyError("llama.cpp is not installed here", "pip install 'mify[llama-cpp]'")
        import xllamacpp

        self.path = Path(path)
        if not self.path.is_file():
            raise MifyError(f"{self.path} does not exist", "give the path of a GGUF file")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.path)
        parameters.n_parallel = parallel
        # 0 is llama.cpp's word for "as the file says".
        parameters.n_ctx = (context or 0) * parallel
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        parameters.warmup = False
        parameters.fit_params = False
        parameters.verbosity = 3 if verbose else 0
        parameters.hostnames = [host]
        parameters.port = port
        if name is not None:
            parameters.model_alias = {name}
        if exact:
            parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise MifyError(
                f"llama.cpp does not load {self.path}: {error}",
                "the file is damaged or of a kind it does not know; LlamaCpp(path, verbose=True) shows its log",
            ) from None
        self.url: str = self._server.listening_address

    def close(self) -> None:
        """Ends the server and frees the model."""
        try:
            if self._server is not None:
                # Its loop answers this. An end that comes before the loop has begun is lost, and the destructor then
                # waits for the loop for ever (seen on a busy machine).
                self.request("/slots")
        finally:
            self._server = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, endpoint: str, body: dict[str, Any] | None = None, *, timeout: float = 600.0) -> Any:
        """POSTs `body` (or GETs, where None) and returns the JSON answer. An HTTP error raises `MifyError`."""
        if self._server is None:
            raise MifyError(f"the llama.cpp server of {self.path} was closed", "start it again")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + endpoint, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode("utf-8", "replace")
            try:
                detail = json.loads(detail)["error"]["message"]
            except (json.JSONDecodeError, KeyError, TypeError):
                detail = detail[:300]
            raise MifyError(f"llama.cpp refused {endpoint}: {detail}", "change the request as it says") from None

    def tokenize(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written in the text stay text unless `parse_special`."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self.request("/tokenize", body)["tokens"]]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.request("/detokenize", {"tokens": list(ids)})["content"])

    def greedy(self, prompt: str | Sequence[int], max_new_tokens: int, *, stop_at_end: bool = False) -> list[int]:
        """The argmax tokens after `prompt`: text (special tokens in it are parsed), or ids, which get nothing before.

        Args:
            stop_at_end: end after an end-of-text token, which is the last one returned; otherwise go on behind it.
        """
        tokens: list[int] = []
        while len(tokens) < max_new_tokens:
            if tokens and isinstance(prompt, str):
                prompt = self.tokenize(prompt, parse_special=True, add_special=True)
            # temperature 0 with no sampler samples; top_k 1 alone is argmax whatever the defaults are. `ignore_eos`
            # would forbid end tokens, not pass over them, so decoding that goes on is asked for again.
            body = {
                "prompt": prompt if isinstance(prompt, str) else [*prompt, *tokens],
                "n_predict": max_new_tokens - len(tokens),
                "samplers": ["top_k"],
                "top_k": 1,
                "temperature": 0.0,
                "return_tokens": True,
                "cache_prompt": False,
            }
            answer = self.request("/completion", body)
            tokens += [int(token) for token in answer["tokens"]]
            if stop_at_end or not answer["tokens"]:
                break
        return tokens

    def log_probabilities(self, ids: Sequence[int]) -> dict[int, float]:
        """Natural log-probability of every vocabulary token after the prompt `ids`, before any sampling."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": 1 << 30,
            "samplers": ["top_k"],
            "top_k": 1,
            "temperature": 0.0,
            "cache_prompt": True,
        }
        first = self.request("/completion", body)["completion_probabilities"][0]
        return {int(item["id"]): float(item["logprob"]) for item in first["top_logprobs"]}

    def infill(self, prefix: str, suffix: str, max_new_tokens: int = 128) -> dict[str, Any]:
        """llama.cpp's own `/infill`, greedy: its answer, with `content` (the middle) and `prompt` (as it built it)."""
        body = {
            "input_prefix": prefix,
            "input_suffix": suffix,
            "n_predict": max_new_tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "temperature": 0.0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        answer: dict[str, Any] = self.request("/infill", body)
        return answer


def greedy_tokens(
    path: str | os.PathLike[str], prompt: str | Sequence[int], max_new_tokens: int, *, threads: int = 1
) -> list[int]:
    """Greedy tokens of a GGUF file by llama.cpp in fp32 settings: the oracle of the export tests and of the demo."""
    with LlamaCpp(path, threads=threads) as server:
        return server.greedy(prompt, max_new_tokens)
