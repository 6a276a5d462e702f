"""The thin server before an engine: it passes everything on, and gives every engine the infill calls editors make.

    POST /v1/completions with `suffix`     OpenAI's; llama.cpp ignores it silently
    POST /beta/completions with `suffix`   DeepSeek's name for the same
    POST /v1/fim/completions               Mistral's (Codestral): prompt and suffix, answered like a chat
    POST /infill                           llama.vim's and llama.vscode's: input_prefix, input_suffix, input_extra

The prompt is made here, as token ids in prefix-suffix-middle order: a FIM token's name in a user's file stays text.
Other files of the editor (`input_extra`) stand before it in the layout of repositories.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import fit_gap, infill_ids
from mify.special_tokens import FILE_SEP, REPO_NAME
from mify.tokenizer import Tokenizer

MAX_BODY_BYTES = 16 << 20
_DEFAULT_TOKENS = 128
_PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "n", "presence_penalty",
              "frequency_penalty", "repeat_penalty", "samplers", "cache_prompt", "t_max_predict_ms")  # fmt: skip
_log = logging.getLogger(__name__)


class Infill:
    """Makes infilling prompts.

    Args:
        tokenizer: of the model. context: tokens that prompt and answer share.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context

    @property
    def marks(self) -> tuple[int, int, int] | None:
        """The ids of the prefix, suffix and middle token; None where the vocabulary lacks one."""
        tokenizer = self._tokenizer
        names = (tokenizer.fim_prefix_id, tokenizer.fim_suffix_id, tokenizer.fim_middle_id)
        return None if None in names else names  # type: ignore[return-value]

    def prompt(
        self, prefix: str, suffix: str, max_tokens: int, extra: list[tuple[str, str]] | None = None
    ) -> list[int]:
        """The ids of a prompt that leaves room for the answer.

        Args:
            extra: (name, text) of other files, the nearest last; as many of the last as fit into half of the room.

        Raises:
            MifyError: the vocabulary has no FIM tokens, or there is no room.
        """
        marks = self.marks
        if marks is None:
            raise MifyError("the vocabulary of this model has no FIM tokens", "serve one trained to fill in the middle")
        room = self._context - max_tokens - 3
        if room < 16:
            raise MifyError(f"{max_tokens} new tokens leave no room in a context of {self._context}", "ask for fewer")
        before = self._files(extra or [], room // 2)
        tokenizer = self._tokenizer
        prefix, suffix = fit_gap(prefix, suffix, room - len(before), tokenizer.encode, tokenizer.decode)
        return before + infill_ids(marks, tokenizer.encode(prefix), tokenizer.encode(suffix), "psm")

    def _files(self, extra: list[tuple[str, str]], room: int) -> list[int]:
        special, encode = self._tokenizer.special, self._tokenizer.encode
        if not extra or FILE_SEP not in special or REPO_NAME not in special:
            return []
        head = [special[REPO_NAME], *encode("editor")]
        chosen: list[int] = []
        for name, text in reversed(extra):
            ids = [special[FILE_SEP], *encode(f"{name}\n{text}")]
            if len(head) + len(chosen) + len(ids) + 1 > room:
                break
            chosen = ids + chosen
        # The file itself has no name that an editor would send.
        return [*head, *chosen, special[FILE_SEP]] if chosen else []


class Adapter:
    """The server. A context manager: it ends with the block.

    Args:
        engine: address of the engine's own server. host, port: where to listen; port 0 takes a free one.
        infill: makes infilling prompts. model: the name to ask the engine for.
    """

    def __init__(self, engine: str, infill: Infill, model: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        parts = urllib.parse.urlsplit(engine)
        assert parts.hostname is not None
        self._engine = (parts.hostname, parts.port or 80)
        self._infill, self._model = infill, model
        try:
            self._server = ThreadingHTTPServer((host, port), self._handler())
        except OSError as error:
            raise MifyError(f"port {port} of {host} is taken ({error.strerror})", "give another --port") from None
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="adapter", daemon=True).start()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._pass_on(self, b"")

            def do_POST(self) -> None:
                outer._post(self)

            def do_OPTIONS(self) -> None:
                outer._pass_on(self, b"")

            def log_message(self, format: str, *args: Any) -> None:
                _log.debug(format, *args)

        return Handler

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        try:
            length = int(request.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY_BYTES:
            request.close_connection = True
            _answer(request, 413, _error(f"a body of at most {MAX_BODY_BYTES} bytes, with its length, is taken"))
            return
        body = request.rfile.read(length)
        path = urllib.parse.urlsplit(request.path).path.rstrip("/")
        infills = path in ("/v1/fim/completions", "/fim/completions", "/infill")
        if not infills and path not in ("/v1/completions", "/completions", "/beta/completions"):
            self._pass_on(request, body)
            return
        try:
            values = json.loads(body)
        except (json.JSONDecodeError, UnicodeDecodeError):
            values = None
        if not isinstance(values, dict):
            _answer(request, 400, _error("the body is no JSON object"))
        elif infills or values.get("suffix"):
            self._infills(request, path, values)
        else:
            self._pass_on(request, body)

    def _infills(self, request: BaseHTTPRequestHandler, path: str, values: dict[str, Any]) -> None:
        llama = path == "/infill"
        tokens = values.get("n_predict" if llama else "max_tokens")
        max_tokens = tokens if isinstance(tokens, int) and tokens > 0 else _DEFAULT_TOKENS
        try:
            if llama:
                prefix = _text(values, "input_prefix") + _text(values, "prompt")
                suffix, extra = _text(values, "input_suffix"), _extra(values)
            else:
                prefix, suffix, extra = _text(values, "prompt"), _text(values, "suffix"), []
            ids = self._infill.prompt(prefix, suffix, max_tokens, extra)
        except MifyError as error:
            _answer(request, 400, _error(f"{error.problem}; {error.remedy}"))
            return
        asked = {name: values[name] for name in _PASSED_ON if name in values}
        asked |= {"model": self._model, "prompt": ids, "max_tokens": max_tokens}
        shape = _as_llama if llama else _as_chat if "fim" in path else None
        self._forward(request, "POST", "/v1/completions", json.dumps(asked).encode(), shape)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        self._forward(request, request.command, request.path, body, None)

    def _forward(self, request: BaseHTTPRequestHandler, method: str, path: str, body: bytes, shape: Any) -> None:
        """Sends a request to the engine and its answer back as it comes.

        Args:
            shape: turns a completion, or a part of one that is streamed, into another interface's; None leaves it.
        """
        connection = http.client.HTTPConnection(*self._engine, timeout=1800)
        names = ("Authorization", "Accept")
        headers = {name: request.headers[name] for name in names if request.headers.get(name)}
        if body:
            headers["Content-Type"] = "application/json" if shape else request.headers.get("Content-Type", "")
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            _answer(request, 502, _error(f"the engine does not answer ({error})"))
            return
        kind = answer.headers.get("Content-Type", "application/json")
        streamed = kind.startswith("text/event-stream")
        if not streamed:
            data = answer.read()
            _answer(request, answer.status, _shaped(data, shape) if answer.status == 200 else data, kind)
            return
        request.send_response(answer.status)
        request.send_header("Content-Type", kind)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        try:
            for piece in _events(answer, shape):
                request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                request.wfile.flush()
            request.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True  # the editor no longer wants it
        finally:
            connection.close()


def _events(answer: http.client.HTTPResponse, shape: Any) -> Iterator[bytes]:
    for line in answer:
        if shape is not None and line.startswith(b"data: {"):
            yield b"data: " + _shaped(line[6:].strip(), shape, streamed=True) + b"\n"
        elif line:
            yield line


def _shaped(data: bytes, shape: Any, *, streamed: bool = False) -> bytes:
    if shape is None:
        return data
    try:
        return json.dumps(shape(json.loads(data), streamed)).encode()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError):
        return data


def _as_chat(answer: dict[str, Any], streamed: bool) -> dict[str, Any]:
    """A completion as Mistral's FIM endpoint answers."""
    choices = []
    for choice in answer["choices"]:
        message = {"role": "assistant", "content": choice["text"]}
        whole = {"index": choice.get("index", 0), "finish_reason": choice.get("finish_reason")}
        choices.append(whole | ({"delta": message} if streamed else {"message": message}))
    return {**answer, "object": f"chat.completion{'.chunk' if streamed else ''}", "choices": choices}


def _as_llama(answer: dict[str, Any], streamed: bool) -> dict[str, Any]:
    """A completion as llama.cpp's /infill answers: what llama.vim reads."""
    choice = answer["choices"][0]
    ended = choice.get("finish_reason")
    usage = answer.get("usage") or {}
    return {
        "content": choice["text"],
        "stop": ended is not None or not streamed,
        "truncated": ended == "length",
        "tokens_predicted": usage.get("completion_tokens"),
        "tokens_evaluated": usage.get("prompt_tokens"),
        "timings": answer.get("timings", {}),
    }


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str):
        raise MifyError(f"{name} is no text", "give one text")
    return value


def _extra(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = values.get("input_extra") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MifyError("input_extra is no list of objects", 'give [{"filename": …, "text": …}]')
    return [(str(row.get("filename") or "file"), str(row.get("text") or "")) for row in rows]


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": 400}}).encode()


def _answer(request: BaseHTTPRequestHandler, status: int, data: bytes, kind: str = "application/json") -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
