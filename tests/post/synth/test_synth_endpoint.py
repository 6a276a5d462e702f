"""The house's client of endpoints: pauses, limits and streams that break off (failures as such: tests/eval)."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from scripted_endpoint import ScriptedEndpoint

from mify.endpoint import Endpoint, Pacer, RequestFailedError, chat_text

pytest.importorskip("openai")
BODY = {"model": "teacher", "seed": 1, "messages": [{"role": "user", "content": "Say something long enough."}]}


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []  # type: ignore[var-annotated]

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_requests_a_minute_are_counted_over_the_last_sixty_seconds() -> None:
    clock = Clock()
    pacer = Pacer(requests_per_minute=3, clock=clock, sleep=clock.sleep)
    starts = []
    for _ in range(7):
        pacer.start(10)
        starts.append(clock.now)
        clock.now += 1
    assert starts[:3] == [0, 1, 2]
    assert starts[3:] == [60, 61, 62, 120]
    for start in starts:
        assert sum(start - 60 < other <= start for other in starts) <= 3


def test_tokens_a_minute_go_by_what_was_really_used() -> None:
    clock = Clock()
    pacer = Pacer(tokens_per_minute=100, clock=clock, sleep=clock.sleep)
    first = pacer.start(80)
    pacer.finish(first, 20)  # it took less than it was thought to take
    pacer.start(80)
    assert clock.now == 0
    pacer.start(30)
    assert clock.now == pytest.approx(60)
    clock.now += 60
    pacer.start(500)  # more than the limit: alone, but it goes
    assert clock.now == pytest.approx(120)
    pacer.start(1)
    assert clock.now == pytest.approx(180)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_back_every_request(serve: Callable[..., ScriptedEndpoint], form: str) -> None:
    clock = Clock()
    waited: dict[str, str] = {"seconds": "7", "date": ""}

    def fault(body: dict[str, Any], number: int) -> Any:
        import time

        wanted = waited["seconds"] if form == "seconds" else formatdate(time.time() + 7, usegmt=True)
        return (429, {"Retry-After": wanted}, "slow down") if number == 1 else None

    server = serve(fault, answer=lambda body: "here")
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    endpoint = Endpoint(server.url, pacer=pacer, pauses=(1.0,), sleep=clock.sleep)
    assert endpoint.post("/chat/completions", BODY, chat_text).tries == 2
    assert 5.5 <= clock.now <= 7.01
    before = clock.now
    pacer.hold(3)
    endpoint.post("/chat/completions", BODY, chat_text)
    assert clock.now == pytest.approx(before + 3)


def test_a_retry_after_that_cannot_be_read_leaves_the_usual_pause(serve: Callable[..., ScriptedEndpoint]) -> None:
    clock = Clock()
    server = serve(lambda body, number: (503, {"Retry-After": "soon"}, "") if number == 1 else None)
    Endpoint(server.url, pauses=(2.5,), sleep=clock.sleep).post("/chat/completions", BODY, chat_text)
    assert clock.slept == [2.5]


@pytest.mark.parametrize("fault", ["reset", "half", "garbage", "null", "half stream", (502, {}, "bad gateway")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_breaks_off_is_asked_again(serve: Callable[..., ScriptedEndpoint], fault: Any, stream: bool) -> None:
    server = serve(lambda body, number: fault if number < 3 else None, answer=lambda body: "x" * 300)
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}} if stream else BODY
    endpoint = Endpoint(server.url, pauses=(0.0, 0.0, 0.0), timeout=5.0)
    reply = endpoint.post("/chat/completions", body, chat_text, key="k")
    assert reply.value == "x" * 300
    # A fault of the other form plays no part.
    harmless = (fault == "half stream" and not stream) or (fault in ("half", "null") and stream)
    assert reply.tries == server.asked["k"] == (1 if harmless else 3)
    assert (reply.prompt_tokens, reply.new_tokens) == (6, 75)


def test_half_an_answer_is_never_taken_for_one(serve: Callable[..., ScriptedEndpoint]) -> None:
    server = serve(lambda body, number: "half stream")
    endpoint = Endpoint(server.url, pauses=(0.0,))
    with pytest.raises(RequestFailedError, match="broke off after") as error:
        endpoint.post("/chat/completions", {**BODY, "stream": True}, chat_text)
    assert (error.value.tries, error.value.final) == (2, False)


def test_a_request_that_is_wrong_itself_is_final(serve: Callable[..., ScriptedEndpoint]) -> None:
    server = serve(lambda body, number: (400, {}, json.dumps({"error": "too long"})))
    with pytest.raises(RequestFailedError, match="HTTP 400") as error:
        Endpoint(server.url).post("/chat/completions", BODY, chat_text)
    assert (error.value.tries, error.value.final) == (1, True)
