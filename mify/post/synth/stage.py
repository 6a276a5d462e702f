"""What a stage is: settings from the recipe, and a function from samples to those kept and those rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mify.post.synth.client import Client, Request
from mify.post.synth.prompts import Prompts
from mify.post.synth.samples import Outcome, Sample

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Context:
    """What a stage may use beside its samples.

    Args:
        name: the stage's name in the recipe. seed: of the run.
        folder: where the stage may keep what lets it continue after a kill.
        upstream: of the stages before it, nearest first: (name, kind, samples kept, samples rejected with reasons).
    """

    name: str
    seed: int
    client: Client
    prompts: Prompts
    folder: Path
    upstream: Callable[[], Sequence[Upstream]]
    progress: Progress

    def ask(self, requests: Sequence[Request]) -> None:
        """Has the requests answered."""
        self.client.ask(requests, lambda done, total: self.progress(self.name, done, total))


@dataclass(frozen=True, slots=True)
class Upstream:
    """A stage before, and its samples, read when they are asked for; `digest` is of those it rejected."""

    name: str
    kind: str
    digest: str
    kept: Callable[[], list[Sample]]
    rejected: Callable[[], list[tuple[Sample, str]]]


@dataclass(frozen=True)
class Stage:
    """The base of all kinds: a frozen dataclass whose fields are the recipe's keys, checked by `check`."""

    kind: ClassVar[str]
    about: ClassVar[str]
    source: ClassVar[bool] = False
    """Whether it makes samples of nothing."""
    prompted: ClassVar[bool] = False
    """Whether its samples depend on the recipe's prompts."""
    looks_back: ClassVar[bool] = False
    """Whether it reads what stages before it rejected."""

    def check(self, where: str) -> None:
        """Raises `MifyError` naming `where` for a setting that cannot be."""

    def asks(self) -> tuple[str, ...]:
        """The names of the endpoints that it asks."""
        return ()

    def files(self) -> tuple[str, ...]:
        """The files whose content its samples depend on."""
        return ()

    def identity(self) -> dict[str, Any]:
        """What else they depend on: versions of packages, say."""
        return {}

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        """What it makes of the samples, all of them in one of the two lists of its outcome."""
        raise AssertionError(f"{type(self).__name__} is no stage of its own")


def draw(seed: int, *parts: Any) -> int:
    """64 bits that depend on the seed and the parts alone: no order of work changes what is drawn."""
    state = hashlib.blake2b(digest_size=8, key=seed.to_bytes(16, "little", signed=True), person=b"mify.post.synth")
    for part in parts:
        encoded = str(part).encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(state.digest(), "little")
