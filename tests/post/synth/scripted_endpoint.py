"""An OpenAI-compatible endpoint that plays a teacher and a judge, fails as it is told, and counts what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a try comes to: None, an answer; (status, headers, body); "hang", "reset", "half", "garbage", "null", or
# "half stream".
Fault = tuple[int, dict[str, str], str] | str | None


def number_of(text: str) -> int:
    """32 bits of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


class ScriptedEndpoint:
    """Answers each request by `answer(body)`, unless `fault(body, try)` says otherwise; tries count from 1."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str],
        fault: Callable[[dict[str, Any], int], Fault] = lambda body, number: None,
        delay: float = 0.0,
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.bodies: dict[str, dict[str, Any]] = {}
        self.times: list[float] = []
        self.tokens = Counter[str]()
        self.release = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers.get("Idempotency-Key", "")
                with outer._lock:
                    outer.asked[key] += 1
                    number = outer.asked[key]
                    outer.bodies[key] = body
                    outer.times.append(time.monotonic())
                time.sleep(delay)
                found = fault(body, number)
                try:
                    self.play(found, body, key)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def play(self, found: Fault, body: dict[str, Any], key: str) -> None:
                if isinstance(found, tuple):
                    return self.whole(found[0], found[2].encode(), found[1])
                if found == "hang":
                    outer.release.wait(30)
                    self.close_connection = True
                    return None
                if found == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return None
                if found == "garbage":
                    return self.whole(200, b'{"choices": [{"message"')
                text = answer(body)
                prompt = sum(len(message["content"]) for message in body["messages"]) // 4
                usage = {"prompt_tokens": prompt, "completion_tokens": max(1, len(text) // 4)}
                if body.get("stream"):
                    return self.stream(text, usage, key, half=found == "half stream")
                content = None if found == "null" else text
                choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                whole = json.dumps({"choices": [choice], "usage": usage}).encode()
                if found == "half":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(whole)))
                    self.end_headers()
                    self.wfile.write(whole[: len(whole) // 2])
                    self.close_connection = True
                    return None
                self.whole(200, whole)
                self.count(key, usage)
                return None

            def whole(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, text: str, usage: dict[str, int], key: str, half: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                pieces = [text[start : start + 20] for start in range(0, len(text), 20)]
                for piece in pieces[: len(pieces) // 2] if half else pieces:
                    self.event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                if not half:
                    self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                    self.event({"choices": [], "usage": usage})
                    self.wfile.write(b"data: [DONE]\n\n")
                    self.count(key, usage)
                self.close_connection = True

            def event(self, value: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
                self.wfile.flush()

            def count(self, key: str, usage: dict[str, int]) -> None:
                with outer._lock:
                    outer.finished[key] += 1
                    outer.tokens.update(usage)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


NOUNS = (
    "temperatures", "invoices", "sensor readings", "chess scores", "train delays", "page counts", "heart rates",
    "ticket prices", "word lengths", "pixel values", "tide levels", "exam marks", "cargo weights", "step counts",
)  # fmt: skip
ACTIONS = {
    "largest gap between neighbours": "max((abs(a - b) for a, b in zip(v, v[1:])), default=0)",
    "running totals": "[sum(v[: i + 1]) for i in range(len(v))]",
    "values above the mean": "[x for x in v if x * len(v) > sum(v)]",
    "sum of squares": "sum(x * x for x in v)",
    "distinct values, sorted": "sorted(set(v))",
    "alternating sum": "sum(x if i % 2 == 0 else -x for i, x in enumerate(v))",
}


def teacher(body: dict[str, Any]) -> str:
    """A sample in the form that prompts.toml asks for: right, wrong or malformed by a hash of the request."""
    if body["model"] == "judge":
        return judge(body)
    number = number_of(json.dumps(body["messages"]) + str(body["seed"]))
    noun = NOUNS[number % len(NOUNS)]
    action = sorted(ACTIONS)[number // 16 % len(ACTIONS)]
    kind = number // 256 % 16
    value = ACTIONS[action]
    good = eval(value, {"v": [3, 1, 4, 1, 5]})
    code = f"def solve(v):\n    return {value}"
    asserts = (
        f"assert solve([3, 1, 4, 1, 5]) == {good!r}",
        "assert solve([1]) != object()",
        "assert solve([2]) != None",
    )
    tests = "\n".join(asserts)
    if kind in (0, 1, 2):
        code = f"def solve(v):\n    wrong = {value}\n    return [wrong]"
    if kind == 3:
        code = "def solve(v)\n    return v"
    if kind == 4:
        tests = "assert True\nassert 1 + 1 == 2\nassert not False"
    if kind == 5:
        return "I would rather talk about something else today."
    problem = (
        f"A log holds {noun} number {number % 997}. Write solve(v), which takes a list of whole numbers and gives its "
        f"{action}, as a report on {noun} needs it. Variant {number % 89} of the tool calls it for every day of year "
        f"{number % 613}."
    )
    solution = f"In one pass.\n\n```python\n{code}\n```"
    return f"## Problem\n{problem}\n\n## Solution\n{solution}\n\n## Tests\n```python\n{tests}\n```\n"


def judge(body: dict[str, Any]) -> str:
    """Grades that know right from wrong nine times in ten; one answer in twenty is outside the rubric."""
    question = body["messages"][-1]["content"]
    number = number_of(question + str(body["seed"]))
    wrong = "wrong =" in question
    if number % 20 == 0:
        return '{"reason": "…", "correctness": 9, "clarity": 3, "usefulness": 3, "quality": 3}'
    if number % 10 == 1:
        wrong = not wrong
    grades = dict.fromkeys(re.findall(r"^- (\w+) \(", question, re.M), (2 if wrong else 4) + number // 32 % 2)
    return json.dumps({"reason": "It reads so.", **grades})


def grid_recipe(url: str, **head: Any) -> dict[str, Any]:
    """48 problems from a grid, taken apart."""
    return {
        "endpoints": {
            "teacher": {"url": url, "model": "teacher", "parallel": 6, "timeout_s": 5.0, "pauses_s": [0.01] * 4},
        },
        "stages": {
            "grid": {
                "kind": "grid", "topics": ["text", "graphs", "dates", "trees"], "skills": ["loops", "recursion"],
                "difficulties": ["easy", "hard"], "per_cell": 3, "max_new_tokens": 300,
            },
            "format": {"kind": "format"},
        },
        **head,
    }  # fmt: skip
