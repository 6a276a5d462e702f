"""The client of OpenAI-compatible endpoints: of evaluation, of synthetic data and of judges.

The package `openai` carries requests (connections kept, streams decoded). When to try again is decided here: every try
is counted, waits as long as the endpoint asks (Retry-After), and holds back all requests to an endpoint that is at its
limit, not only the one that was told. A request that fails for a passing reason (no connection, a time-out, 408, 409,
429, 5xx, an answer that is no answer, a stream without its end) is tried again; after that it is a failure with its
reason, never an empty answer.
"""

from __future__ import annotations

import email.utils
import importlib.util
import ipaddress
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mify.errors import MifyError

T = TypeVar("T")
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
MAX_WAIT_S = 120.0
"""The longest that an endpoint's Retry-After is believed."""
_HOPELESS = (401, 403, 404, 405)
_PASSING = (408, 409, 429)


class RequestFailedError(Exception):
    """One request that could not be answered; the others go on.

    Args:
        final: the request itself is wrong (too long, say): asking again changes nothing.
        tries: how often it was sent.
    """

    def __init__(self, problem: str, *, final: bool = False, tries: int = 1) -> None:
        super().__init__(problem)
        self.final, self.tries = final, tries


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What was read from an answer, the tokens it was billed for (None where the endpoint does not say), and tries."""

    value: T
    prompt_tokens: int | None
    new_tokens: int | None
    tries: int


class Pacer:
    """Keeps requests and tokens a minute below an endpoint's limits; both are counted over the last 60 seconds.

    Tokens are an estimate when a request starts, and what the endpoint counted once it is answered.

    Args:
        requests_per_minute, tokens_per_minute: None is no limit.
        clock, sleep: for tests.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = (requests_per_minute, tokens_per_minute)
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._sent: list[list[float]] = []  # [when, tokens], oldest first
        self._not_before = 0.0

    def start(self, tokens: int) -> list[float]:
        """Waits until one more request of about so many tokens may go; what it returns is handed to `finish`."""
        while True:
            with self._lock:
                now = self._clock()
                wait = self._wait(now, tokens)
                if wait <= 0:
                    entry = [now, float(tokens)]
                    self._sent.append(entry)
                    return entry
            self._sleep(min(wait, 5.0))

    def finish(self, entry: list[float], tokens: int) -> None:
        """What the request really took."""
        with self._lock:
            entry[1] = float(tokens)

    def hold(self, seconds: float) -> None:
        """No request goes before so many seconds are over."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)

    def _wait(self, now: float, tokens: int) -> float:
        if now < self._not_before:
            return self._not_before - now
        while self._sent and self._sent[0][0] <= now - 60:
            self._sent.pop(0)
        requests, most = self._limits
        waits = [0.0]
        if requests is not None and len(self._sent) >= requests:
            waits.append(self._sent[len(self._sent) - requests][0] + 60 - now)
        if most is not None and self._sent:
            # A request above the limit goes alone, since it would never fit.
            excess = sum(entry[1] for entry in self._sent) + min(tokens, most) - most
            for when, spent in self._sent:
                if excess <= 0:
                    break
                excess -= spent
                waits.append(when + 60 - now)
        return max(waits)


class Endpoint:
    """`{url}` of an OpenAI-compatible server.

    Args:
        url: as OpenAI clients take it, ending in /v1.
        api_key: sent as a bearer token.
        timeout: seconds without a byte until a try is given up.
        pauses: seconds before each further try, unless the endpoint asks for another wait.
        pacer: shared by all who ask this endpoint.
        sleep: for tests.

    Raises:
        MifyError: `url` is no address.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        pauses: Sequence[float] = PAUSES_S,
        pacer: Pacer | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise MifyError(f"{url!r} is no address of an endpoint", "give one such as http://127.0.0.1:8000/v1")
        self.url, self.host = url.rstrip("/"), parts.netloc
        self._key, self._timeout, self._pauses = api_key, timeout, tuple(pauses)
        self._pacer, self._sleep = pacer or Pacer(), sleep
        self._local = _is_local(parts.hostname or "")
        self._made = threading.Lock()
        self._client: Any = None

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        tokens: int = 0,
        key: str | None = None,
    ) -> Reply[T]:
        """Sends a request until it is answered.

        Args:
            path: below `url`, or a whole address.
            body: JSON. With `"stream": true` the pieces are put together, and `read` gets what it gets without.
            read: what is wanted of the answer; where it raises ValueError, KeyError, IndexError, TypeError or
                AttributeError the answer is none, and is asked for again.
            tokens: an estimate of prompt and answer, for the pacer.
            key: sent as Idempotency-Key: a gateway that honours it bills the same request once.

        Raises:
            RequestFailedError: it could not be answered.
            MifyError: no request will be: address, key or model are refused, or `openai` is not installed.
        """
        url = path if "://" in path else self.url + path
        tries, problem = 0, ""
        for pause in (*self._pauses, None):
            entry = self._pacer.start(tokens)
            tries += 1
            try:
                answer = self._send(url, body, key)
                value = read(answer)
                prompt, new = _usage(answer)
                self._pacer.finish(entry, tokens if prompt is None or new is None else prompt + new)
                return Reply(value, prompt, new, tries)
            except _Failed as failure:
                problem = str(failure)
                if failure.code in _HOPELESS:
                    raise MifyError(f"{url} refused: {problem}", "check the address, the key and the model") from None
                if failure.code is not None and failure.code not in _PASSING and failure.code < 500:
                    raise RequestFailedError(problem, final=True, tries=tries) from None
                if failure.wait is not None:
                    self._pacer.hold(failure.wait)
                    pause = 0.0 if pause is not None else None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"an answer that is none ({type(error).__name__}: {error})"
            if pause is not None:
                self._sleep(pause)
        raise RequestFailedError(problem, tries=tries)

    def close(self) -> None:
        """Ends the connections; what is still on its way fails."""
        if self._client is not None:
            self._client.close()

    def _send(self, url: str, body: Mapping[str, Any], key: str | None) -> Any:
        if importlib.util.find_spec("openai") is None:
            raise MifyError("endpoints are asked through the package openai", "pip install 'mify[endpoint]'")
        import httpx2
        import openai

        client = self._opened()
        headers = {} if key is None else {"Idempotency-Key": key}
        try:
            if body.get("stream"):
                events = client.post(
                    url, cast_to=object, body=body, options={"headers": headers}, stream=True,
                    stream_cls=openai.Stream[object],
                )  # fmt: skip
                with events:
                    return _joined(events)
            answer = client.post(url, cast_to=httpx2.Response, body=body, options={"headers": headers})
            return json.loads(answer.content)
        except openai.APIStatusError as error:
            words = error.response.text.strip()[:300]
            wait = _retry_after(error.response.headers.get("retry-after"))
            raise _Failed(f"HTTP {error.status_code}: {words}", error.status_code, wait) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            reason = str(error) if isinstance(error, openai.APITimeoutError) else str(cause)
            raise _Failed(f"{type(cause).__name__}: {reason}") from None
        except openai.APIError as error:  # an error told inside a stream
            raise _Failed(f"{type(error).__name__}: {error.message}") from None

    def _opened(self) -> Any:
        import openai

        with self._made:
            if self._client is None:
                self._client = openai.OpenAI(
                    base_url=self.url,
                    api_key=self._key or "none",
                    max_retries=0,
                    timeout=self._timeout,
                    # A proxy of the environment is for the world, not for this machine.
                    http_client=openai.DefaultHttpxClient(trust_env=not self._local, limits=_limits()),
                )
            return self._client


def _limits() -> Any:
    """As many connections as there are threads that ask: the default of 100 would queue them unseen."""
    import httpx2

    return httpx2.Limits(max_connections=None, max_keepalive_connections=256)


def chat_text(answer: Any) -> str:
    """The text of a chat completion."""
    return _text(answer["choices"][0]["message"]["content"])


def completion_text(answer: Any) -> str:
    """The text of a plain completion."""
    return _text(answer["choices"][0]["text"])


class _Failed(Exception):
    """One try that failed: the HTTP status where there was one, and the seconds that the endpoint wants to be left."""

    def __init__(self, problem: str, code: int | None = None, wait: float | None = None) -> None:
        super().__init__(problem)
        self.code, self.wait = code, wait


def _joined(events: Any) -> dict[str, Any]:
    """One answer from a chat's pieces; a stream that ends before its finish_reason is none."""
    parts: list[str] = []
    finish, usage = None, None
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            parts.append(delta.get("content") or "")
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise _Failed(f"the stream broke off after {sum(map(len, parts))} characters")
    return {"choices": [{"message": {"content": "".join(parts)}, "finish_reason": finish}], "usage": usage}


def _usage(answer: Any) -> tuple[int | None, int | None]:
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None where there is none or it cannot be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_WAIT_S) if seconds == seconds else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, {type(value).__name__} found")
    return value


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
