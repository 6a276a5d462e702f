"""A vocabulary for tiktoken: `vocabulary.tiktoken` (base64 of a token's bytes, its rank) and `encoding.json` beside it.

tiktoken joins any two neighbours whose bytes together are a token, lowest rank first; a `tokenizer.json` joins the
pairs that its merges list. The two can differ on rare words, so an export is proved on texts, and refused where one
differs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.files import atomic_file, read_json, write_json
from mify.tokenizer import QWEN2_PATTERN, Tokenizer

if TYPE_CHECKING:
    import tiktoken

FORMAT, VERSION = "tiktoken-encoding", 1


def encoding_of(ranks: Mapping[bytes, int], special: Mapping[str, int], name: str) -> tiktoken.Encoding:
    """What `tiktoken` makes of a vocabulary. Raises MifyError where it is not installed."""
    try:
        import tiktoken
    except ImportError:
        raise MifyError("the package tiktoken is not installed", "pip install tiktoken") from None
    return tiktoken.Encoding(name, pat_str=QWEN2_PATTERN, mergeable_ranks=dict(ranks), special_tokens=dict(special))


def export_tiktoken(tokenizer: Tokenizer, folder: str | Path, texts: Iterable[str]) -> int:
    """Writes the two files into `folder` once tiktoken has given the same ids on all of `texts`; returns how many.

    Raises: MifyError: another pre-tokenizer than qwen2's, a text with other ids (it is quoted), no text, no tiktoken.
    """
    folder = Path(folder)
    if tokenizer.native is None:
        raise MifyError(
            "the tokenizer's pre-tokenizer is another than qwen2's", "use one that `mify tokenizer train` made"
        )
    name = f"mify-{tokenizer.fingerprint[:12]}"
    ranks = tokenizer.mergeable_ranks()
    encoding = encoding_of(ranks, tokenizer.special, name)
    proved = 0
    for text in texts:
        if encoding.encode_ordinary(text) != tokenizer.encode(text):
            raise MifyError(
                f"tiktoken gives other ids than the tokenizer for {_first_difference(encoding, tokenizer, text)!r}",
                "use tokenizer.json with `tokenizers` or mify, which agree",
            )
        proved += 1
    if not proved:
        raise MifyError("there is no text to prove the export on", "give a corpus with documents in it")
    lines = (
        f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in sorted(ranks.items(), key=lambda x: x[1])
    )
    with atomic_file(folder / "vocabulary.tiktoken") as temporary:
        temporary.write_text("".join(lines), encoding="ascii")
    settings = {"name": name, "pat_str": QWEN2_PATTERN, "special_tokens": tokenizer.special}
    write_json(folder / "encoding.json", {"format": FORMAT, "version": VERSION, **settings})
    return proved


def load_tiktoken(folder: str | Path) -> tiktoken.Encoding:
    """The encoding that `export_tiktoken` wrote. Special tokens are parsed only where `encode` is told to."""
    folder = Path(folder)
    settings: dict[str, Any] = read_json(folder / "encoding.json")
    if settings.get("format") != FORMAT or settings.get("version") != VERSION:
        raise MifyError(
            f"{folder / 'encoding.json'} is {settings.get('format')!r} version {settings.get('version')!r}",
            f"this mify reads {FORMAT!r} version {VERSION}: export it again",
        )
    if settings["pat_str"] != QWEN2_PATTERN:
        raise MifyError(f"{folder} has another pattern than this mify's", "export it again")
    ranks = {}
    for number, line in enumerate((folder / "vocabulary.tiktoken").read_text(encoding="ascii").splitlines(), 1):
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except ValueError:
            raise MifyError(f"{folder / 'vocabulary.tiktoken'}, line {number} is damaged", "export it again") from None
    return encoding_of(ranks, settings["special_tokens"], settings["name"])


def _first_difference(encoding: tiktoken.Encoding, tokenizer: Tokenizer, text: str) -> str:
    """The first line that differs by itself, or the beginning of the text."""
    lines = text.splitlines(keepends=True)
    differing = (line for line in lines if encoding.encode_ordinary(line) != tokenizer.encode(line))
    return next(differing, text)[:80]
