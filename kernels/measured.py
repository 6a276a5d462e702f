"""What was measured on which GPU: the table by which `mify.kernels.dispatch` prefers one backend to another.

The table is kernels/measured.json, and holds nothing that was not measured: an op without entries for a GPU goes by the
op's stated rules. `python -m mify.kernels.measured RESULT.json …` takes over the entries that stand in bench results
under the key "measured". One entry is one shape:

    {"op": "gqa", "device": "NVIDIA H200", "dtype": "bfloat16", "source": "commit, versions, date",
     "shape": {"tokens": 32768, "documents": 32, "query_heads": 20, …},
     "microseconds": {"triton": 1234.5, "fa3": 1345.6}}

The names under "microseconds" are backends, or, for an op such as "gqa forward", tile sizes of one kernel.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT, VERSION = "mify.measured", 1
FILE = Path(__file__).with_name("measured.json")
# How far a shape may lie from a measured one: the sum of |log2| of what its sizes differ by. 1 is a factor of two.
FARTHEST = 1.0


@dataclass(frozen=True)
class Entry:
    """The times of an op's choices at one shape on one GPU.

    Args:
        device: as torch.cuda.get_device_name says. dtype: of the activations, without "torch.".
        shape: name → size, as the op gives it to the dispatcher.
        microseconds: choice → time; forward and backward together where the op has both.
        source: commit, versions and date of the measurement.
    """

    op: str
    device: str
    dtype: str
    shape: Mapping[str, int]
    microseconds: Mapping[str, float]
    source: str = ""


@dataclass(frozen=True)
class Like:
    """What makes two shapes of an op alike.

    Args:
        equal: sizes that must be the same. near: sizes that may differ, by `FARTHEST` together.
    """

    equal: tuple[str, ...]
    near: tuple[str, ...] = ()

    def distance(self, a: Mapping[str, int], b: Mapping[str, int]) -> float:
        """Sum of |log2(a/b)| over what may differ; infinite where something that must be equal is not."""
        if any(name not in a or name not in b for name in (*self.equal, *self.near)):
            return math.inf
        if any(a[name] != b[name] for name in self.equal):
            return math.inf
        return sum(abs(math.log2(max(a[name], 1) / max(b[name], 1))) for name in self.near)


def fastest_first(
    table: Iterable[Entry], op: str, device: str, dtype: str, shape: Mapping[str, int], like: Like
) -> tuple[str, ...]:
    """The choices by their time at the nearest measured shape; () where none is near enough."""
    found = [entry for entry in table if (entry.op, entry.device, entry.dtype) == (op, device, dtype)]
    if not found:
        return ()
    nearest = min(found, key=lambda entry: like.distance(entry.shape, shape))
    if like.distance(nearest.shape, shape) > FARTHEST:
        return ()
    return tuple(sorted(nearest.microseconds, key=lambda name: nearest.microseconds[name]))


def parse(text: str, name: str) -> tuple[Entry, ...]:
    """The entries of a table or of a bench result. Raises ValueError naming the file `name` and what is wrong."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__}; a table is an object")
    if data.get("format") == FORMAT and data.get("version") != VERSION:
        raise ValueError(f"{name} has version {data.get('version')!r} of {FORMAT}; this mify reads {VERSION}")
    if data.get("format") != FORMAT and "measured" not in data:
        raise ValueError(f"{name} has the format {data.get('format')!r}; a table has {FORMAT!r}")
    rows = data["entries"] if data.get("format") == FORMAT else data["measured"]
    return tuple(_entry(row, f"{name}, entry {index}") for index, row in enumerate(rows))


def _entry(row: Any, name: str) -> Entry:
    try:
        entry = Entry(**row)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
    if not entry.microseconds:
        raise ValueError(f"{name}: microseconds is empty; an entry holds at least one time")
    for choice, time in entry.microseconds.items():
        if not isinstance(time, (int, float)) or not 0 < time < math.inf:
            raise ValueError(f"{name}: {choice} took {time!r} microseconds; a time is a positive number")
    for key, size in entry.shape.items():
        if not isinstance(size, int):
            raise ValueError(f"{name}: {key} is {size!r}; a size is an integer")
    return entry


@functools.lru_cache
def load() -> tuple[Entry, ...]:
    """The committed table."""
    return parse(FILE.read_text(encoding="utf-8"), str(FILE))


def merged(old: Iterable[Entry], new: Iterable[Entry]) -> tuple[Entry, ...]:
    """Both, the new one where an op was measured again at the same shape on the same GPU; in a stable order."""
    entries = {_key(entry): entry for entry in (*old, *new)}
    return tuple(entries[key] for key in sorted(entries))


def _key(entry: Entry) -> tuple[str, ...]:
    return entry.op, entry.device, entry.dtype, json.dumps(dict(entry.shape), sort_keys=True)


def dump(entries: Sequence[Entry]) -> str:
    """The text of a table: the same bytes for the same entries."""
    rows = [asdict(entry) for entry in entries]
    return json.dumps({"format": FORMAT, "version": VERSION, "entries": rows}, indent=1, sort_keys=True) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Takes the entries of bench results into the committed table."""
    if not arguments:
        print("usage: python -m mify.kernels.measured RESULT.json …", file=sys.stderr)
        return 2
    entries = load()
    for argument in arguments:
        entries = merged(entries, parse(Path(argument).read_text(encoding="utf-8"), argument))
    temporary = FILE.with_suffix(".json.part")
    temporary.write_text(dump(entries), encoding="utf-8")
    os.replace(temporary, FILE)
    print(f"{FILE} holds {len(entries)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
