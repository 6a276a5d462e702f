"""An OpenAI-compatible endpoint that answers, stumbles, lies and hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mify.errors import MifyError
from mify.eval.completers import Prompt, Sampling
from mify.eval.endpoint import EndpointCompleter
from mify.eval.open_model import open_model

pytest.importorskip("openai")

Reply = tuple[int, bytes] | None  # None: hang


class Server:
    """Answers with what `reply(path, body, number of the try)` says, and keeps what it was asked."""

    def __init__(self, reply: Callable[[str, dict[str, Any], int], Reply]) -> None:
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
                answer = reply(self.path, body, len(outer.requests))
                if answer is None:
                    outer.release.wait(30)
                    return
                self.send_response(answer[0])
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[str, dict[str, Any], int], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answered(text: str) -> Reply:
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return 200, json.dumps({"choices": [{"text": text, "message": {"content": text}}], "usage": usage}).encode()


def ask(
    completer: EndpointCompleter, *prompts: Prompt, stop: tuple[str, ...] = ()
) -> dict[str, tuple[str | None, dict]]:
    answers: dict[str, tuple[str | None, dict]] = {}
    completer.complete(
        prompts,
        Sampling(max_new_tokens=7, stop=stop),
        frozenset(),
        lambda prompt, text, facts: answers.__setitem__(prompt.key[0], (text, facts)),
    )
    return answers


def test_completions_chat_and_infilling(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, body, number: answered(f"{path[4:]} {body.get('suffix')}|stop|more"))
    completer = EndpointCompleter(server.url, "m", api_key="secret", suffix=True)
    prompts = [Prompt(("a", 0), "x"), Prompt(("b", 0), "x", "y"), Prompt(("c", 0), "x", chat=True)]
    answers = ask(completer, *prompts, stop=("1", "2", "3", "4", "|stop|"))
    assert answers["a"] == ("completions None", {"prompt_tokens": 3, "new_tokens": 5})
    assert answers["b"][0] == "completions y"
    assert answers["c"][0] == "chat/completions None"
    bodies = {json.dumps(body.get("messages")) + str(body.get("suffix")): body for _, body, _ in server.requests}
    assert bodies["nully"]["stop"] == ["1", "2", "3", "4"]
    assert bodies["nully"]["max_tokens"] == 7
    assert bodies['[{"role": "user", "content": "x"}]None']["temperature"] == 0.0
    assert {headers["authorization"] for _, _, headers in server.requests} == {"Bearer secret"}
    assert not EndpointCompleter(server.url, "m").can_infill


@pytest.mark.parametrize(
    "stumble",
    [(500, b"oops"), (503, b""), (429, b"slow down"), (200, b"not json"), (200, b"{}"), (200, b'{"choices": []}'),
     (200, b'{"choices": [{"text": null}]}'), (200, b"[1]"), (200, b"\xff\xfe")],
)  # fmt: skip
def test_a_passing_failure_is_tried_again(serve: Callable[..., Server], stumble: Reply) -> None:
    server = serve(lambda path, body, number: stumble if number < 3 else answered("fine"))
    answers = ask(EndpointCompleter(server.url, "m", pauses=(0.0, 0.0, 0.0)), Prompt(("a", 0), "x"))
    assert answers["a"][0] == "fine"
    assert len(server.requests) == 3


def test_a_lasting_failure_is_counted_with_its_reason(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, body, number: (500, b"out of memory") if body["prompt"] == "bad" else answered("ok"))
    completer = EndpointCompleter(server.url, "m", pauses=(0.0, 0.0))
    answers = ask(completer, Prompt(("bad", 0), "bad"), Prompt(("good", 0), "good"))
    assert answers["good"][0] == "ok"
    assert answers["bad"] == (None, {"error": "HTTP 500: out of memory"})
    assert len(server.requests) == 4


def test_a_wrong_request_is_not_repeated(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, body, number: (400, b"prompt too long"))
    answers = ask(EndpointCompleter(server.url, "m", pauses=(0.0, 0.0)), Prompt(("a", 0), "x"))
    assert answers["a"] == (None, {"error": "HTTP 400: prompt too long"})
    assert len(server.requests) == 1


def test_a_hanging_endpoint_times_out(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, body, number: None)
    answers = ask(EndpointCompleter(server.url, "m", timeout=0.2, pauses=(0.0,)), Prompt(("a", 0), "x"))
    assert answers["a"][0] is None
    assert "timed out" in answers["a"][1]["error"]


def test_nobody_there() -> None:
    answers = ask(EndpointCompleter("http://127.0.0.1:9/v1", "m", pauses=(0.0,)), Prompt(("a", 0), "x"))
    assert answers["a"][0] is None
    assert "refused" in answers["a"][1]["error"]


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_no_repetition_mends_ends_the_run(serve: Callable[..., Server], code: int) -> None:
    server = serve(lambda path, body, number: (code, b"no"))
    with pytest.raises(MifyError, match=f"HTTP {code}"):
        ask(EndpointCompleter(server.url, "m"), Prompt(("a", 0), "x"))


def test_what_is_done_is_not_asked(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, body, number: answered("new"))
    seen: list[str] = []
    EndpointCompleter(server.url, "m").complete(
        [Prompt(("a", 0), "x"), Prompt(("b", 0), "x")],
        Sampling(max_new_tokens=7),
        frozenset({("a", 0)}),
        lambda prompt, text, facts: seen.append(prompt.key[0]),
    )
    assert seen == ["b"]


def test_addresses_and_names_are_checked() -> None:
    with pytest.raises(MifyError, match="no address"):
        EndpointCompleter("localhost:8000", "m")
    with pytest.raises(MifyError, match="by name"), open_model("http://127.0.0.1:1/v1"):
        pass
    with pytest.raises(MifyError, match="'vllm' is unknown"), open_model("x", engine="vllm"):
        pass
