"""Conversations between the formats that people have and the one that is trained on; rejects counted by reason.

Each format is a reader and a writer of rows. What a row says beyond a conversation is kept, so that a row which was
read and written again says what it said, JSON texts in it up to their spacing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mify
from mify.errors import MifyError
from mify.files import atomic_file, read_json, sha256_file, text_lines, write_json
from mify.post import convert_functions, convert_tags, convert_text
from mify.post.chat import BadConversation, Conversation, check
from mify.post.functions import check_functions

REPORT, REPORT_FORMAT, REPORT_VERSION = "convert.json", "mify-convert", 1
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how its rows are read and written, and what tells them from others'."""

    read: Callable[[dict[str, Any]], Conversation]
    write: Callable[[Conversation], dict[str, Any]]
    recognises: Callable[[dict[str, Any]], bool]


def _keys(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(name in row for name in names)


# In the order in which they are tried on a row.
FORMATS: dict[str, Format] = {
    "mify": Format(Conversation.from_dict, Conversation.to_dict, _keys("format", "messages")),
    "openai": Format(convert_text.read_openai, convert_text.write_openai, _keys("messages")),
    "hermes": Format(
        convert_tags.read_sharegpt, convert_tags.write_hermes,
        lambda row: "conversations" in row and "<tool_call>" in json.dumps(row["conversations"]),
    ),
    "sharegpt": Format(convert_tags.read_sharegpt, convert_tags.write_sharegpt, _keys("conversations")),
    "chatml": Format(
        convert_tags.read_chatml, convert_tags.write_chatml,
        lambda row: str(row.get("text", "")).lstrip().startswith("<|im_start|>"),
    ),
    "xlam": Format(convert_functions.read_xlam, convert_functions.write_xlam, _keys("query", "answers", "tools")),
    "glaive": Format(convert_functions.read_glaive, convert_functions.write_glaive, _keys("system", "chat")),
    "bfcl": Format(convert_functions.read_bfcl, convert_functions.write_bfcl, _keys("question", "function")),
    "magicoder": Format(
        convert_text.read_magicoder, convert_text.write_magicoder,
        lambda row: {"problem", "solution"} <= row.keys() or {"instruction", "response"} <= row.keys(),
    ),
    "alpaca": Format(convert_text.read_alpaca, convert_text.write_alpaca, _keys("instruction", "output")),
}  # fmt: skip


@dataclass
class Tally:
    """What became of rows.

    Args:
        reasons: how many rows were rejected, by reason. examples: of each reason the first few, "row 7: …".
    """

    rows: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def reject(self, error: BadConversation, where: str) -> None:
        self.reasons[error.reason] += 1
        found = self.examples.setdefault(error.reason, [])
        if len(found) < _EXAMPLES:
            found.append(f"{where}: {error}")

    def add(self, other: Tally) -> None:
        self.rows, self.kept = self.rows + other.rows, self.kept + other.kept
        self.reasons += other.reasons
        for reason, found in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine += found[: _EXAMPLES - len(mine)]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "kept": self.kept, "reasons": dict(self.reasons), "examples": self.examples}


@dataclass(frozen=True)
class Options:
    """How rows are converted.

    Args:
        source_format: one of `FORMATS`, or "auto": by the first row's keys. target_format: one of `FORMATS`.
        source, category: given to conversations that have none.
        prompts: keep conversations in which the assistant says nothing, too.
        on_bad: what a bad row does: it is rejected and counted, or it ends the conversion.
    """

    source_format: str = "auto"
    target_format: str = "mify"
    source: str = ""
    category: str = ""
    prompts: bool = False
    on_bad: Literal["reject", "stop"] = "reject"

    def __post_init__(self) -> None:
        for name, value in (("source_format", self.source_format), ("target_format", self.target_format)):
            if value not in FORMATS and (name, value) != ("source_format", "auto"):
                raise MifyError(f"{value!r} is no format", f"use one of {', '.join(FORMATS)}")
        if self.on_bad not in ("reject", "stop"):
            raise MifyError(f"on_bad = {self.on_bad!r} is unknown", "use reject or stop")


def detect_format(row: dict[str, Any]) -> str:
    """The format of a row. Raises MifyError where it is of none."""
    for name, known in FORMATS.items():
        if known.recognises(row):
            return name
    raise MifyError(
        f"rows with the keys {', '.join(sorted(map(str, row)))} are of no known format",
        f"name it: {', '.join(FORMATS)}",
    )


def convert_row(row: Any, options: Options, source_format: str) -> Conversation:
    """The conversation of a row, checked. Raises BadConversation."""
    if not isinstance(row, dict):
        raise BadConversation("not_an_object", f"{str(row)[:60]!r}")
    read = FORMATS[source_format].read(row)
    named = Conversation(
        read.messages, read.tools, read.id, read.source or options.source, read.category or options.category, read.extra
    )
    check(named, answered=not options.prompts)
    check_functions(named)
    return named


def write_row(conversation: Conversation, target_format: str) -> dict[str, Any]:
    """The row of a conversation, proved by reading it again: the same messages, but for the ids of calls.

    Raises:
        BadConversation: not_expressible, what the format cannot say.
    """
    known = FORMATS[target_format]
    row = known.write(conversation)
    try:
        said = known.read(row)
    except BadConversation as error:
        raise BadConversation("not_expressible", f"{target_format} would hold it as something else ({error})") from None
    if _said(said) != _said(conversation):
        raise BadConversation("not_expressible", f"{target_format} would hold it as something else")
    return row


def _said(conversation: Conversation) -> list[Any]:
    return [
        (m.role, m.content, m.reasoning, [(call.name, call.arguments) for call in m.tool_calls], m.weight)
        for m in conversation.messages
    ]


def convert_files(inputs: list[Path], out: Path, options: Options, say: Callable[[str], None]) -> Tally:
    """Converts files and folders of rows (.jsonl, .json, .parquet) into `out`, a .jsonl for each.

    Beside each stand `rejects/NAME.jsonl` (row, reason, problem). Files appear whole or not at all; what is there
    already, of the same input and options, is not made again. `out/convert.json` holds the counts.

    Raises:
        MifyError: an input that is not there, of no known format, or not JSON at all; a bad row under on_bad="stop".
    """
    files = list(_input_files(inputs))
    names = [f"{file.stem}.jsonl" for file in files]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise MifyError(f"two inputs would be written to {out / doubled}", "convert them into folders of their own")
    known = read_json(out / REPORT)["files"] if (out / REPORT).is_file() else {}
    report: dict[str, Any] = {}
    total = Tally()
    seen: set[str] = set()
    before = hashlib.sha256()  # of what the files in front hold: their ids are taken
    for file, name in zip(files, names, strict=True):
        identity = {
            "input": sha256_file(file), "options": vars(options), "mify": mify.__version__,
            "before": before.hexdigest(),
        }  # fmt: skip
        entry = known.get(name)
        if entry and entry["identity"] == identity and _is_whole(out / name, entry["output"]):
            values = entry["tally"]
            tally = Tally(values["rows"], values["kept"], Counter(values["reasons"]), values["examples"])
            seen |= {i for row in read_rows(out / name) if (i := str(row.get("id") or ""))}
            say(f"{name}: there already")
        else:
            tally = _convert_file(file, out, name, options, seen)
            entry = {"identity": identity, "output": sha256_file(out / name), "tally": tally.to_dict()}
            say(f"{name}: {tally.kept:,} of {tally.rows:,} rows")
        report[name] = entry
        before.update(entry["output"].encode())
        total.add(tally)
        document = {"format": REPORT_FORMAT, "version": REPORT_VERSION, "files": report, "total": total.to_dict()}
        write_json(out / REPORT, document)
    return total


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def _convert_file(file: Path, out: Path, name: str, options: Options, seen: set[str]) -> Tally:
    tally = Tally()
    chosen = "" if options.source_format == "auto" else options.source_format
    with (
        atomic_file(out / name) as kept, atomic_file(out / "rejects" / name) as rejected,
        kept.open("w", encoding="utf-8") as good, rejected.open("w", encoding="utf-8") as bad,
    ):  # fmt: skip
        for number, row in enumerate(read_rows(file), start=1):
            tally.rows += 1
            if not chosen and isinstance(row, dict):
                chosen = detect_format(row)
            try:
                if isinstance(row, BadConversation):
                    raise row
                conversation = convert_row(row, options, chosen)
                if conversation.id in seen:
                    raise BadConversation("duplicate_id", f"{conversation.id} is there already")
                line = json.dumps(write_row(conversation, options.target_format), ensure_ascii=False)
            except BadConversation as error:
                if options.on_bad == "stop":
                    raise MifyError(
                        f"{file}, row {number}: {error}", "mend the row, or let bad ones be rejected"
                    ) from None
                tally.reject(error, f"{file.name}, row {number}")
                kept_row = row if not isinstance(row, BadConversation) else None
                bad.write(_line({"row": number, "reason": error.reason, "problem": str(error), "value": kept_row}))
                continue
            seen |= {conversation.id} if conversation.id else set()
            tally.kept += 1
            good.write(line + "\n")
    return tally


def _line(value: Any) -> str:
    # Rejected rows may hold what is no Unicode text.
    return json.dumps(value, ensure_ascii=True, default=str) + "\n"


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a .jsonl, .json (a list, or lines) or .parquet file; of a line that is no JSON, a BadConversation.

    Of a BFCL file, the rows with the answers that lie in `possible_answer` beside it.
    """
    if file.suffix == ".parquet":
        import pyarrow.parquet

        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
                yield from batch.to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise MifyError(f"{file} is no whole Parquet file ({error})", "download or write it again") from None
        return
    with file.open("rb") as lines:
        head = lines.read(4096).lstrip()[:1]
        lines.seek(0)
        if file.suffix == ".json" and head == b"[":
            yield from _json_list(file)
            return
        answers = _bfcl_answers(file)
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadConversation("not_json", str(error))
                continue
            if isinstance(row, dict) and row.get("id") in answers:
                row.setdefault("ground_truth", answers[row["id"]])
            yield row


def _json_list(file: Path) -> list[Any]:
    found = read_json(file)
    return found if isinstance(found, list) else [found]


def _bfcl_answers(file: Path) -> dict[Any, Any]:
    answers = file.parent / "possible_answer" / file.name
    if not file.name.startswith("BFCL_") or not answers.is_file():
        return {}
    rows = (json.loads(line) for line in text_lines(answers) if line.strip())
    return {row["id"]: row["ground_truth"] for row in rows}


def _input_files(inputs: list[Path]) -> Iterator[Path]:
    for path in inputs:
        found = (
            sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".parquet"))
            if path.is_dir()
            else [path]
        )
        if not found or not found[0].is_file():
            raise MifyError(f"{path} holds no .jsonl, .json or .parquet file", "check the path")
        yield from found
