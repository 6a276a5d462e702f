"""The next batch is made while the current one trains.

A window's plan takes seconds of C++ once in thousands of steps; made ahead in a thread, it costs the loop nothing.
Beside each batch travels the stream's state after it, so that a checkpoint holds the position of what was *trained*,
not of what was fetched.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mify.data.batch import PackedBatch


class Stream(Protocol):
    """What the trainer asks of a stream; `mify.data.stream.TokenStream` is one."""

    def __iter__(self) -> Iterator[PackedBatch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def ledger(self) -> dict[str, Any]: ...

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        """Names of the documents in each row of the global batch that follows `state`."""
        ...


@dataclass(frozen=True)
class _Fetched:
    batch: PackedBatch
    state: dict[str, Any]
    ledger: dict[str, Any]


class Prefetcher:
    """Draws from `stream` in a thread, `ahead` batches in front of the loop; 0: in the loop itself, when it asks, for
    a batch that is made with the weights as they are then.

    `state` and `ledger` are those after the batch that `next` gave last, `before` is the state in front of it. Before
    the first they are the stream's own, or the `ledger` given (a resumed stream does not know the shares of an epoch
    until it has planned it).
    """

    def __init__(
        self, stream: Stream, *, ahead: int = 2, pin_memory: bool = False, ledger: dict[str, Any] | None = None
    ) -> None:
        self.state, self.ledger = stream.state_dict(), ledger or stream.ledger()
        self.before = self.state
        self._stream, self._pin, self._ahead = stream, pin_memory, ahead
        self._batches: Iterator[PackedBatch] | None = None
        self._queue: queue.Queue[_Fetched | BaseException | None] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None  # started by the first next(): a finished run plans nothing

    def next(self) -> PackedBatch | None:
        """The next batch; None when the stream is at its end. Raises what the stream raised."""
        if self._ahead == 0:
            return self._make()
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch, name="prefetch", daemon=True)
            self._thread.start()
        item = self._queue.get()
        if not isinstance(item, _Fetched):
            self._queue.put(item)  # asked again, it answers again
            if item is None:
                return None
            raise item
        self.before = self.state
        self.state, self.ledger = item.state, item.ledger
        return item.batch

    def _make(self) -> PackedBatch | None:
        if self._batches is None:
            self._batches = iter(self._stream)
        batch = next(self._batches, None)
        if batch is not None:
            self.before = self.state
            self.state, self.ledger = self._stream.state_dict(), self._stream.ledger()
        return batch

    def drop(self) -> None:
        """After a rollback: a stream that makes batches of the weights' own answers begins anew."""
        drop = getattr(self._stream, "drop", None)
        if drop is not None:
            drop()

    def close(self) -> None:
        """Ends the thread; batches made ahead are dropped (they will be made again)."""
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def _fetch(self) -> None:
        try:
            for batch in self._stream:
                ready = batch.pin_memory() if self._pin else batch
                self._put(_Fetched(ready, self._stream.state_dict(), self._stream.ledger()))
                if self._closed.is_set():
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 (raised in the loop's thread by next())
            self._put(error)

    def _put(self, item: _Fetched | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
