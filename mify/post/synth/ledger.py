"""Every request that was sent and every answer that came, on disk before anybody uses it.

A request's key is a hash of what is asked: model, messages, sampling. What is in the ledger is never asked again, by
any stage or run. A line says that a request is being sent before it is, so after a kill it is known which were on their
way: their answers are lost, they are asked again, and may have been billed. Lines are flushed one by one (a kill loses
none) and synced every second (a power cut loses at most that).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.typed_tree import canonical_json

FORMAT, VERSION = "synth-requests", 1
_HEADER = canonical_json({"format": FORMAT, "version": VERSION}).encode() + b"\n"
SYNC_EVERY_S = 1.0


class Ledger:
    """requests.jsonl of a run: one process at a time, any number of threads. A context manager.

    `totals` counts requests, tries and tokens of all runs, `spent` the cost of answers by endpoint.

    Raises:
        MifyError: another process has it, or it is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}  # key → where its line begins
        self._open: dict[str, tuple[str, float]] = {}
        self.totals: Counter[str] = Counter()
        self.spent: dict[str, float] = defaultdict(float)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 - open as long as the run
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise MifyError(f"another process works in {path.parent}", "wait for it, or give another --out") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def interrupted(self) -> dict[str, tuple[str, float]]:
        """Requests without an end, before a run asks: on their way at a kill; key → (endpoint, worst cost)."""
        with self._lock:
            return dict(self._open)

    def answer(self, key: str) -> dict[str, Any]:
        """What came to a request: {"text", "finish", …}, or {"failed": why} where asking again changes nothing."""
        with self._lock:
            line = os.pread(self._file.fileno(), 1 << 16, self._places[key])
            while not line.endswith(b"\n") and b"\n" not in line:
                more = os.pread(self._file.fileno(), 1 << 20, self._places[key] + len(line))
                if not more:
                    break
                line += more
        return dict(json.loads(line.split(b"\n", 1)[0]))

    def sending(self, key: str, endpoint: str, worst: float) -> None:
        """Says that a request goes out; `worst` is the most that it can cost."""
        self._append({"sent": key, "endpoint": endpoint, "worst": worst})

    def answered(self, key: str, endpoint: str, cost: float, body: Mapping[str, Any], answer: dict[str, Any]) -> None:
        """Keeps an answer, or a failure that is final."""
        self._append({"key": key, "endpoint": endpoint, "cost": cost, "body": body, **answer})

    def gave_up(self, key: str, problem: str, tries: int) -> None:
        """A failure that may pass: the request is asked again by the next run."""
        self._append({"gave_up": key, "problem": problem, "tries": tries})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, sort_keys=True, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
            self._take(record, place)

    def _read(self) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or killed while the header was written
            if not _HEADER.startswith(first):
                raise MifyError(f"{self.path} is no {FORMAT}", "give another folder with --out")
            self._file.truncate(0)
            self._file.write(_HEADER)
            self._file.flush()
            return
        if first != _HEADER:
            raise MifyError(f"{self.path} is no {FORMAT} of version {VERSION}", "give another folder with --out")
        place = len(first)
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                self._file.truncate(place)  # a kill cut it: that record was not finished
                return
            try:
                self._take(json.loads(line), place)
            except (ValueError, KeyError, TypeError):
                raise MifyError(
                    f"{self.path} is damaged at byte {place}", "cut it there; what follows is asked again"
                ) from None
            place += len(line)

    def _take(self, record: dict[str, Any], place: int) -> None:
        if "sent" in record:
            self._count_interrupted(record["sent"])
            self._open[record["sent"]] = (record["endpoint"], float(record["worst"]))
            self.totals["sent"] += 1
        elif "gave_up" in record:
            self._open.pop(record["gave_up"], None)
            self.totals["gave up"] += 1
            self.totals["tries"] += record["tries"]
        else:
            self._open.pop(record["key"], None)
            self._places[record["key"]] = place
            self.totals["failed" if "failed" in record else "answered"] += 1
            self.totals["tries"] += record["tries"]
            self.totals["prompt tokens"] += record.get("prompt_tokens") or 0
            self.totals["new tokens"] += record.get("new_tokens") or 0
            self.spent[record["endpoint"]] += record["cost"]

    def _count_interrupted(self, key: str) -> None:
        """A request that is sent again without an end before was on its way at a kill."""
        if key in self._open:
            endpoint, worst = self._open.pop(key)
            self._open[f"{key}#{self.totals['sent']}"] = (endpoint, worst)
