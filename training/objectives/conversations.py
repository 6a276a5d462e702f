"""What fine-tuning reads: conversations as token ids, those that fit, and which of them an epoch sees.

Nothing is left out silently. A conversation that is longer than the context is dropped, or cut behind the last turn of
the assistant that fits, or ends the run; a line that is no good conversation is dropped or ends it; all are counted.

Which conversations a stage sees is decided by a hash of what they say, keyed by the seed: the first n in its order. So
a smaller stage's conversations are among those of a larger one, whatever else is added or taken away.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mify
from mify.errors import MifyError
from mify.files import atomic_folder, read_json, sha256_file, write_json
from mify.post.chat import BadConversation, Conversation, check, render
from mify.post.convert import Tally
from mify.post.functions import check_functions
from mify.post.safety import check_ratio, is_harmful
from mify.tokenizer import Tokenizer
from mify.training.config import ConversationsSection


@dataclass(frozen=True)
class Source:
    """A source of conversations.

    Args:
        path: a .jsonl file, or a folder of them. weight: how often an epoch sees each: a whole number.
        parts: of `parts` of all sources together, this one's conversations are so many, exactly; None: all it has.
    """

    name: str
    path: Path
    weight: float = 1.0
    parts: int | None = None


@dataclass
class Counts:
    """What became of a source's lines.

    Args:
        conversations: that can be trained on. too_long: dropped. truncated: cut to fit.
        harmful: of those, answers to harmful requests, by their category (`mify.post.safety`).
        supervised_cut: tokens that would have carried loss and were cut off or dropped with their conversation.
        tally: lines, and those that are no good conversations, by reason.
    """

    conversations: int = 0
    too_long: int = 0
    truncated: int = 0
    harmful: int = 0
    supervised_cut: int = 0
    tally: Tally = field(default_factory=Tally)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Counts:
        """Of its fields as plain values."""
        tally = values["tally"]
        return Counts(**values | {"tally": Tally(**tally | {"reasons": Counter(tally["reasons"])})})

    def to_dict(self) -> dict[str, Any]:
        """As the ledger has it."""
        counts: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "tally"}
        return counts | {"rejected": dict(self.tally.reasons)}

    def describe(self, name: str) -> str:
        """A line for the person who starts the run."""
        text = f"{name}: {self.conversations:,} conversations"
        text += f", {self.harmful:,} of them answers to harmful requests" if self.harmful else ""
        left = {"too long": self.too_long} | {key.replace("_", " "): n for key, n in self.tally.reasons.items()}
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in left.items() if count)
        text += f"; dropped: {dropped}" if dropped else ""
        text += f"; cut to the context: {self.truncated:,}" if self.truncated else ""
        return text + (f" ({self.supervised_cut:,} tokens with loss lost)" if self.supervised_cut else "")


class ConversationSet:
    """Conversations as token ids, in memory or mapped from a file: 5 bytes a token.

    Attributes:
        ids: (tokens,) uint32, and loss: (tokens,) bool, one conversation behind the other; number i from offsets[i] on.
        source: (conversations,) number of its source. keys: (conversations, 32) SHA-256 of what each says.
        harmful: (conversations,) bool, by category. counts: what became of each source's lines.
        fingerprint: SHA-256 over the tokenizer and all that is kept, in its order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        rules: ConversationsSection,
        *,
        context: int,
        skip: Collection[str] = (),
        cache: Path | None = None,
        write_cache: bool = True,
    ) -> None:
        """Args:
        skip: the first 16 digits of keys of conversations that keep their place and carry no loss.
        cache: a folder that holds what was made of the same files before, or will: 0.5 ms a conversation are saved.
        """
        self.sources = list(sources)
        for source in sources:
            _check_source(source, sources)
        identity = _identity(sources, tokenizer, rules, context) if cache is not None else ""
        found = _load(cache, identity) if cache is not None else None
        if found is None:
            found = _read_all(sources, tokenizer, rules, context)
            if cache is not None and write_cache:
                _store(cache, identity, *found)
        arrays, counts = found
        self.counts = [Counts.from_dict(values) for values in counts]
        self.ids, self.loss, self.offsets = arrays["ids"], arrays["loss"], arrays["offsets"]
        self.source, self.keys = arrays["source"], arrays["keys"]
        self.harmful, self.safety = arrays["harmful"], rules.safety
        if len(self) == 0:
            raise MifyError("no conversation fits the context", f"raise data.context above {context}")
        content = hashlib.sha256(tokenizer.fingerprint.encode())
        content.update(np.ascontiguousarray(self.keys).tobytes())
        content.update(np.ascontiguousarray(self.offsets).tobytes())
        self.fingerprint = content.hexdigest()
        self._orders: dict[int, list[int]] = {}
        blanked = {name[:16] for name in skip}
        hit = [number for number in range(len(self)) if self.identity(number) in blanked] if blanked else []
        if hit:
            self.loss = self.loss.copy()
            for number in hit:
                self.loss[self.offsets[number] : self.offsets[number + 1]] = False

    def __len__(self) -> int:
        return len(self.keys)

    def identity(self, number: int) -> str:
        """64 bits of a conversation's key, in hexadecimal: what `data.skip` takes."""
        return bytes(self.keys[number, :8]).hex()

    def chosen(self, seed: int, size: int | None = None) -> list[int]:
        """The conversations that a stage sees, ascending.

        Args:
            size: at most so many; those of a smaller size are among those of a larger one. None: all that there are.

        Raises:
            MifyError: no conversation is left, or harmful and general ones are not in the ratio of `rules.safety`.
        """
        order = self._order(seed)
        if all(source.parts is None for source in self.sources):
            picked = order if size is None else order[:size]
        else:
            whole = sum(source.parts or 0 for source in self.sources)
            of_source = [[n for n in order if self.source[n] == index] for index in range(len(self.sources))]
            times = min(len(found) // (s.parts or 1) for found, s in zip(of_source, self.sources, strict=True))
            times = times if size is None else min(times, size // whole)
            picked = [
                n for found, s in zip(of_source, self.sources, strict=True) for n in found[: times * (s.parts or 0)]
            ]
        if not picked:
            raise MifyError(
                "the mixture has no conversation: a source has fewer than its parts",
                "add conversations, lower data.sources.*.parts, or raise data.conversations.stages",
            )
        if self.safety:
            harmful = int(self.harmful[picked].sum())
            check_ratio(harmful, len(picked) - harmful, self.safety)
        return sorted(picked)

    def _order(self, seed: int) -> list[int]:
        if seed not in self._orders:
            salt = seed.to_bytes(8, "little", signed=True)
            hashes = [hashlib.blake2b(key.tobytes(), digest_size=16, key=salt).digest() for key in self.keys]
            self._orders = {seed: sorted(range(len(hashes)), key=lambda number: (hashes[number], number))}
        return self._orders[seed]


def fit(loss: Sequence[bool], context: int) -> int:
    """To what length a conversation is cut: behind the last of the assistant's turns that fits, or, where none does,
    at the context; 0 where no token with loss would stay."""
    if len(loss) <= context:
        return len(loss)
    ends = (i for i in range(context, 0, -1) if loss[i - 1] and not loss[i])
    return next(ends, context if any(loss[:context]) else 0)


def _check_source(source: Source, sources: Sequence[Source]) -> None:
    if source.weight < 1 or source.weight != int(source.weight):
        raise MifyError(
            f"data.sources.{source.name}.weight = {source.weight} is no whole number",
            "for sft a weight is how often each conversation is seen in an epoch: 1, 2, …",
        )
    if (source.parts is None) != (sources[0].parts is None):
        raise MifyError("some of data.sources have parts and others have none", "give parts to all of them, or to none")
    if source.parts is not None and (source.parts < 1 or source.weight != 1):
        raise MifyError(
            f"data.sources.{source.name} has parts = {source.parts} and weight = {source.weight}",
            "parts are whole numbers from 1 on, and go with weight = 1: a weight would change their ratio",
        )


_Arrays = dict[str, NDArray[Any]]
_FORMAT, _VERSION = "mify-rendered-conversations", 2


def _read_all(
    sources: Sequence[Source], tokenizer: Tokenizer, rules: ConversationsSection, context: int
) -> tuple[_Arrays, list[dict[str, Any]]]:
    counts = [Counts() for _ in sources]
    ids: list[NDArray[np.uint32]] = []
    loss: list[NDArray[np.bool_]] = []
    numbers: list[int] = []
    keys: list[bytes] = []
    harmful: list[bool] = []
    for number, source in enumerate(sources):
        for tokens, carries, key, risky in _read(source, counts[number], tokenizer, rules, context):
            ids.append(np.array(tokens, np.uint32))
            loss.append(np.array(carries, np.bool_))
            numbers.append(number)
            keys.append(key)
            harmful.append(risky)
    arrays: _Arrays = {
        "ids": np.concatenate(ids) if ids else np.zeros(0, np.uint32),
        "loss": np.concatenate(loss) if loss else np.zeros(0, np.bool_),
        "offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
        "source": np.array(numbers, np.int64),
        "harmful": np.array(harmful, np.bool_),
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
    }
    return arrays, [vars(count) | {"tally": count.tally.to_dict()} for count in counts]


def _identity(sources: Sequence[Source], tokenizer: Tokenizer, rules: ConversationsSection, context: int) -> str:
    """SHA-256 over all that what is read depends on: the files, the tokenizer, the template, the rules, this mify."""
    from mify.export.chat_template import CHAT_TEMPLATE

    files = [[source.name, [[f.name, sha256_file(f)] for f in conversation_files(source.path)]] for source in sources]
    said = [files, tokenizer.fingerprint, CHAT_TEMPLATE, rules.too_long, rules.bad, context, mify.__version__]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _load(cache: Path, identity: str) -> tuple[_Arrays, list[dict[str, Any]]] | None:
    if not (cache / "meta.json").is_file():
        return None
    meta = read_json(cache / "meta.json")
    if (meta["format"], meta["version"], meta["identity"]) != (_FORMAT, _VERSION, identity):
        return None
    return {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}, meta["counts"]


def _store(cache: Path, identity: str, arrays: _Arrays, counts: list[dict[str, Any]]) -> None:
    meta = {"format": _FORMAT, "version": _VERSION, "identity": identity, "arrays": list(arrays), "counts": counts}
    with atomic_folder(cache) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        write_json(temporary / "meta.json", meta)


def _read(
    source: Source, counts: Counts, tokenizer: Tokenizer, rules: ConversationsSection, context: int
) -> Iterator[tuple[list[int], list[bool], bytes, bool]]:
    """(ids, loss, key, harmful) of a source's conversations, cut to the context where that is asked for."""
    seen: set[str] = set()
    for where, line in _lines(source.path):
        counts.tally.rows += 1
        try:
            conversation = Conversation.from_json(line)
            check(conversation)
            check_functions(conversation)
            if conversation.id in seen:
                raise BadConversation("duplicate_id", f"{conversation.id} is there already")
        except BadConversation as error:
            if rules.bad == "stop":
                raise MifyError(
                    f"{where}, is no conversation to train on: {error}",
                    "mend it, let `mify convert` sort such out, or set --data.conversations.bad=drop",
                ) from None
            counts.tally.reject(error, where)
            continue
        seen |= {conversation.id} if conversation.id else set()
        ids, loss = render(conversation, tokenizer)
        length = len(ids)
        if length > context:
            if rules.too_long == "stop":
                raise MifyError(
                    f"{where}, has {length:,} tokens and the context {context:,}",
                    "raise data.context, or set --data.conversations.too_long=drop or truncate",
                )
            length = fit(loss, context) if rules.too_long == "truncate" else 0
            counts.supervised_cut += sum(loss[length:])
            counts.truncated += length > 0
            counts.too_long += length == 0
        if length:
            counts.conversations += 1
            counts.tally.kept += 1
            counts.harmful += is_harmful(conversation.category)
            yield ids[:length], loss[:length], conversation.key, is_harmful(conversation.category)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in conversation_files(path):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", line


def conversation_files(path: Path) -> list[Path]:
    """The .jsonl files of a source. Raises MifyError where there are none."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise MifyError(
            f"{path} holds no .jsonl file of conversations",
            'give lines of {"messages": [...]}: mify convert makes them',
        )
    return files
