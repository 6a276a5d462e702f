"""Serving: the choice of an engine, the infill calls of editors, and the command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.export import llama_cpp
from mify.model import Model
from mify.serve.adapter import Adapter, Infill
from mify.serve.engines import EngineProcess, choose_engine, engine_command, free_port, prepare

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")


@pytest.mark.parametrize(
    ("asked", "is_gguf", "has_gpu", "installed", "expected"),
    [("auto", True, False, ["llama.cpp"], "llama.cpp"), ("auto", True, True, ["llama.cpp", "vllm"], "llama.cpp"),
     ("auto", False, True, ["llama.cpp", "vllm", "sglang"], "vllm"), ("auto", False, True, ["sglang"], "sglang"),
     ("auto", False, True, ["llama.cpp"], "llama.cpp"), ("auto", False, False, ["llama.cpp", "vllm"], "llama.cpp"),
     ("vllm", False, False, ["vllm"], "vllm")],
)  # fmt: skip
def test_the_engine(asked: str, is_gguf: bool, has_gpu: bool, installed: list[str], expected: str) -> None:
    assert choose_engine(asked, is_gguf=is_gguf, has_gpu=has_gpu, installed=installed) == expected


@pytest.mark.parametrize(
    ("asked", "is_gguf", "has_gpu", "installed", "message"),
    [("auto", False, False, [], "pip install 'mify"), ("auto", False, True, [], "pip install vllm"),
     ("sglang", False, True, ["vllm"], "sglang is not installed"), ("ollama", False, False, [], "unknown"),
     ("vllm", True, True, ["vllm"], "GGUF")],
)  # fmt: skip
def test_no_engine(asked: str, is_gguf: bool, has_gpu: bool, installed: list[str], message: str) -> None:
    with pytest.raises(MifyError, match=message):
        choose_engine(asked, is_gguf=is_gguf, has_gpu=has_gpu, installed=installed)


def test_commands_of_the_engines(tmp_path: Path) -> None:
    command = engine_command("vllm", tmp_path, "m", 1234, 4096)
    assert command[1:3] == ["serve", str(tmp_path)]
    assert {"--served-model-name", "--enable-auto-tool-choice", "--max-model-len", "4096"} <= set(command)
    assert "sglang.launch_server" in engine_command("sglang", tmp_path, "m", 1234, None)


def test_an_engine_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mify.serve.engines.engine_command", lambda *_: [sys.executable, "-c", "exit('no such GPU')"])
    with pytest.raises(MifyError, match="no such GPU"):
        EngineProcess("vllm", tmp_path, "m", timeout=30)


@needs_llama_cpp
def test_another_kind_of_model_is_exported_once(folder: Path, tmp_path: Path) -> None:
    first = prepare(folder, "llama.cpp", dtype="f16", cache=tmp_path)
    written = first.path.stat().st_mtime_ns
    assert first.is_gguf
    assert prepare(folder, "llama.cpp", dtype="f16", cache=tmp_path).path.stat().st_mtime_ns == written
    assert prepare(folder, "vllm", cache=tmp_path).path == folder
    assert prepare(first.path, "llama.cpp", cache=tmp_path).path == first.path
    again = prepare(first.path, "vllm", cache=tmp_path)
    assert (again.path / "config.json").is_file()


def ask(url: str, path: str, body: Any, method: str = "POST") -> tuple[int, Any]:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data if method == "POST" else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    try:
        return answer.status, json.loads(text)
    except json.JSONDecodeError:
        return answer.status, text.decode()


@pytest.fixture(scope="module")
def served(gguf: Path, model: Model) -> Iterator[str]:
    if not llama_cpp.available():
        pytest.skip("xllamacpp is not installed")
    with (
        llama_cpp.LlamaCpp(gguf, name="small") as server,
        Adapter(server.url, Infill(model.require_tokenizer(), model.config.context), "small") as adapter,
    ):
        yield adapter.url


PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\n\nprint(add(1, 2))\n"
GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}


def test_every_infill_call_gives_what_the_model_writes(served: str, model: Model) -> None:
    expected = model.infill(PREFIX, SUFFIX, max_new_tokens=12)
    assert expected
    body = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12, **GREEDY}
    for path in ("/v1/completions", "/beta/completions"):
        status, answer = ask(served, path, body)
        assert (status, answer["choices"][0]["text"]) == (200, expected)
    status, answer = ask(served, "/v1/fim/completions", {"model": "codestral", **body})
    assert (status, answer["choices"][0]["message"]) == (200, {"role": "assistant", "content": expected})
    assert answer["object"] == "chat.completion"
    status, answer = ask(
        served,
        "/infill",
        {"input_prefix": PREFIX[:-7], "prompt": PREFIX[-7:], "input_suffix": SUFFIX, "n_predict": 12, **GREEDY},
    )
    assert (status, answer["content"], answer["tokens_predicted"]) == (200, expected, 12)


def test_llama_cpp_alone_ignores_the_suffix(served: str) -> None:
    """Why the adapter is there: a completion without a suffix is another."""
    body = {"prompt": PREFIX, "max_tokens": 12, **GREEDY}
    plain = ask(served, "/v1/completions", body)[1]["choices"][0]["text"]
    assert plain != ask(served, "/v1/completions", {**body, "suffix": SUFFIX})[1]["choices"][0]["text"]
    assert plain == ask(served, "/v1/completions", {**body, "suffix": ""})[1]["choices"][0]["text"]


def test_streams_are_passed_on_as_they_come(served: str, model: Model) -> None:
    expected = model.infill(PREFIX, SUFFIX, max_new_tokens=12)
    body = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12, "stream": True, **GREEDY}
    status, text = ask(served, "/v1/fim/completions", body)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"]["content"] for event in events if event["choices"]]
    assert status == 200
    assert len(pieces) > 3
    assert "".join(pieces) == expected
    assert "data: [DONE]" in text


def test_the_engine_is_seen_through_the_adapter(served: str) -> None:
    assert ask(served, "/health", b"", "GET") == (200, {"status": "ok"})
    assert ask(served, "/v1/models", b"", "GET")[1]["data"][0]["id"] == "small"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    assert ask(served, "/v1/chat/completions", body)[1]["choices"][0]["message"]["role"] == "assistant"
    assert ask(served, "/nowhere", {})[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [("/infill", b"not json", "no JSON object"), ("/infill", [1], "no JSON object"),
     ("/infill", {"input_prefix": 3}, "input_prefix is no text"), ("/infill", {"input_extra": "x"}, "no list"),
     ("/v1/fim/completions", {"prompt": "a", "max_tokens": 510}, "leave no room")],
)  # fmt: skip
def test_wrong_requests_are_told_so(served: str, path: str, body: Any, message: str) -> None:
    status, answer = ask(served, path, body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_prompts_of_infilling(model: Model) -> None:
    tokenizer = model.require_tokenizer()
    infill = Infill(tokenizer, 512)
    assert tokenizer.decode(infill.prompt("a", "b", 8)) == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    extra = [("far.py", "x" * 3000), ("near.py", "def near():\n    return 1\n")]
    ids = infill.prompt("a", "b", 8, extra)
    text = tokenizer.decode(ids)
    assert text == (
        "<|repo_name|>editor<|file_sep|>near.py\ndef near():\n    return 1\n"
        "<|file_sep|><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    )
    # A token's name in a file is text, and what does not fit is cut at the far ends.
    named = infill.prompt("x <|fim_suffix|> y", "", 8)
    assert named.count(tokenizer.fim_suffix_id) == 1
    long = infill.prompt("word " * 900 + "near", "soon" + " word" * 900, 8)
    assert len(long) <= 512 - 8
    assert "near<|fim_suffix|>soon" in tokenizer.decode(long)


class Engine:
    """Answers completions with what it was asked, as vLLM would."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                data = b'{"choices": [{"text": "middle", "index": 0, "finish_reason": "length"}], "usage": {}}'
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def test_any_engine_gets_token_ids(model: Model) -> None:
    engine = Engine()
    tokenizer = model.require_tokenizer()
    with Adapter(engine.url, Infill(tokenizer, 512), "small") as adapter:
        status, answer = ask(
            adapter.url, "/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 5, "top_p": 0.9}
        )
        assert (status, answer["content"], answer["truncated"]) == (200, "middle", True)
        assert engine.asked == [
            {"model": "small", "prompt": Infill(tokenizer, 512).prompt("a", "b", 5), "max_tokens": 5, "top_p": 0.9}
        ]
        port = urllib.parse.urlsplit(adapter.url).port or 0
        with pytest.raises(MifyError, match="is taken"), Adapter(engine.url, Infill(tokenizer, 512), "m", port=port):
            pass
        engine.server.shutdown()
        engine.server.server_close()
        status, answer = ask(adapter.url, "/v1/completions", {"prompt": "x"})
        assert status == 502
        assert "does not answer" in answer["error"]["message"]


def test_a_vocabulary_without_fim_tokens_refuses(model: Model) -> None:
    from mify.tokenizer import Tokenizer

    definition = model.require_tokenizer().definition
    kept = [token for token in definition["added_tokens"] if "fim" not in token["content"]]
    infill = Infill(Tokenizer({**definition, "added_tokens": kept}), 512)
    assert infill.marks is None
    with pytest.raises(MifyError, match="no FIM tokens"):
        infill.prompt("a", "b", 8)


@pytest.mark.slow
@needs_llama_cpp
def test_the_command_serves_until_it_is_interrupted(gguf: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mify", "serve", str(gguf), "--port", str(port), "--threads", "1"]
    # A shell's background jobs ignore SIGINT, and so would what they start.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: ask(url, "/health", b"", "GET")[0] == 200)
        status, answer = ask(url, "/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 3})
        assert status == 200
        assert isinstance(answer["content"], str)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert f"llama.vim        {url}/infill" in output
    assert process.returncode == 130


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("it did not come up")
