"""llama.cpp's names of pre-tokenizers, and the `pre_tokenizer` of a tokenizer.json that each stands for.

A GGUF file does not carry the splitting pattern, only its name (`tokenizer.ggml.pre`), and llama.cpp has each pattern
in its own source. So a tokenizer can be exported only if its pattern is one of these. Each row here was compared with
the real llama.cpp token by token (tests/export/test_pretokenizers.py); patterns that llama.cpp only approximates
(tekken, gpt-4o: it has no \\p{Lu}) are left out on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mify.errors import MifyError

# llama.cpp spells both cases out. The usual (?i:…) is read as the same: it differs in one character ('ſ, U+017F).
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_FOLDED_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3 = _CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_SEED_CODER = _CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")

_DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers.

    Args:
        name: the value of `tokenizer.ggml.pre`.
        splits: the regular expressions applied one after the other, each isolating its matches.
        ignore_merges: whether a piece that is a whole token skips the merges (llama.cpp ties this to the name).
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False


# The first of several names with the same splits is the one that exports use.
KNOWN: tuple[PreTokenizer, ...] = (
    PreTokenizer("qwen2", (_QWEN2,)),
    PreTokenizer("llama-bpe", (_LLAMA3,), ignore_merges=True),
    PreTokenizer("dbrx", (_LLAMA3,)),
    PreTokenizer("smollm", (_DIGIT, _GPT2)),
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("seed-coder", (_SEED_CODER,)),
    # Names that other converters write for the same splits: read, not written.
    PreTokenizer("llama3", (_LLAMA3,), ignore_merges=True),
    PreTokenizer("llama-v3", (_LLAMA3,), ignore_merges=True),
    PreTokenizer("smaug-bpe", (_LLAMA3,)),
    PreTokenizer("stablelm2", (_QWEN2,)),
    PreTokenizer("deepseek-r1-qwen", (_QWEN2,)),
    PreTokenizer("starcoder", (_DIGIT, _GPT2)),
    PreTokenizer("refact", (_DIGIT, _GPT2)),
    PreTokenizer("command-r", (_DIGIT, _GPT2)),
    PreTokenizer("phi-2", (_GPT2,)),
    PreTokenizer("mpt", (_GPT2,)),
    PreTokenizer("olmo", (_GPT2,)),
)

NAMES = tuple(known.name for known in KNOWN)


def by_name(name: str, where: str) -> PreTokenizer:
    """The pre-tokenizer of a GGUF file's `tokenizer.ggml.pre`; an unknown one raises `MifyError`."""
    for known in KNOWN:
        if known.name == name:
            return known
    raise MifyError(
        f"{where}: the pre-tokenizer {name!r} is not known here (known: {', '.join(NAMES)})",
        "import the model's Hugging Face folder instead: it carries the pattern itself",
    )


def detect(tokenizer: dict[str, Any], where: str) -> PreTokenizer:
    """The llama.cpp pre-tokenizer that splits as the parsed tokenizer.json `tokenizer` does.

    Raises `MifyError` naming the pattern where llama.cpp has none that is equal.
    """
    splits = _splits(tokenizer.get("pre_tokenizer"), where)
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for known in KNOWN:
        if known.splits == splits and known.ignore_merges == ignore_merges:
            return known
    if any(known.splits == splits for known in KNOWN):
        raise MifyError(
            f"{where}: llama.cpp ties this splitting pattern to another ignore_merges than {ignore_merges}",
            "export to Hugging Face's format, or retrain the tokenizer with the qwen2 pattern",
        )
    shown = " then ".join(splits) if splits else "no splitting"
    raise MifyError(
        f"{where}: llama.cpp has no pre-tokenizer that splits as this one does: {shown}",
        "export to Hugging Face's format, or retrain the tokenizer with the qwen2 pattern",
    )


def hugging_face(known: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` entry of a tokenizer.json that splits as llama.cpp's `known`."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in known.splits
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def _splits(entry: dict[str, Any] | None, where: str) -> tuple[str, ...]:
    """The regular expressions of a `pre_tokenizer` entry that ends in bytes, in one spelling."""
    steps = [] if entry is None else entry["pretokenizers"] if entry["type"] == "Sequence" else [entry]
    splits: list[str] = []
    for place, step in enumerate(steps):
        kind = step["type"]
        last = place == len(steps) - 1
        if kind == "ByteLevel" and last:
            if step.get("add_prefix_space"):
                raise _unlike(where, "ByteLevel with add_prefix_space")
            if step.get("use_regex", True):
                splits.append(_GPT2)
            return tuple(splits)
        if kind == "Split" and not last:
            pattern = step["pattern"]
            behavior, invert = step["behavior"], bool(step.get("invert"))
            if "Regex" not in pattern or (behavior, invert) not in {("Isolated", False), ("Removed", True)}:
                raise _unlike(where, f"Split {pattern} {behavior} invert={invert}")
            splits.append(pattern["Regex"].replace(_FOLDED_CONTRACTIONS, _CONTRACTIONS))
        elif kind == "Digits" and step.get("individual_digits") and not last:
            splits.append(_DIGIT)
        else:
            raise _unlike(where, kind)
    raise _unlike(where, "no ByteLevel step at its end")


def _unlike(where: str, what: str) -> MifyError:
    return MifyError(
        f"{where}: its pre-tokenizer has {what}, which llama.cpp's byte-level BPE has not",
        "export to Hugging Face's format, or retrain the tokenizer with the qwen2 pattern",
    )
