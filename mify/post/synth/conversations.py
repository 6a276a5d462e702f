"""Samples as conversations, the form that fine-tuning reads (`mify.post.chat`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mify.files import atomic_file
from mify.post.chat import BadConversation, Conversation, Message, check
from mify.post.safety import is_harmful, safety_report
from mify.post.synth.samples import Sample

# Of a sample's origin, what who trains on it must be able to look up.
_ORIGIN = ("stage", "model", "request", "document", "repo", "path", "license", "parent", "method", "topic")


def write_conversations(folder: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Writes a conversation a line: conversations.jsonl, and safety.jsonl with those of a category of risk.

    Two files, so that the trainer can mix them exactly by count (`data.sources.*.parts`). Tests do not go along: they
    are no part of what is said.

    Returns:
        Counts, by language and category; what is no conversation is counted by its reason.
    """
    bad: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    written: dict[str, list[Conversation]] = {"conversations.jsonl": [], "safety.jsonl": []}
    for sample in samples:
        try:
            conversation = conversation_of(sample)
        except BadConversation as error:
            bad[error.reason] += 1
            continue
        written["safety.jsonl" if is_harmful(conversation.category) else "conversations.jsonl"].append(conversation)
        languages[sample.language or "none"] += 1
    for name, conversations in written.items():
        if not conversations and name == "safety.jsonl":
            (folder / name).unlink(missing_ok=True)
            continue
        with atomic_file(folder / name) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{conversation.to_json()}\n" for conversation in conversations)
    everything = [conversation for found in written.values() for conversation in found]
    return {
        "count": len(everything),
        "bad": dict(sorted(bad.items())),
        "languages": dict(sorted(languages.items())),
        "safety": safety_report(conversation.category for conversation in everything),
    }


def conversation_of(sample: Sample) -> Conversation:
    """The user asks the problem, the assistant gives the answer.

    Raises:
        BadConversation: it would be none.
    """
    conversation = Conversation(
        (Message("user", sample.problem), Message("assistant", sample.answer)),
        id=sample.id,
        source="synth",
        category=sample.category,
        extra={"origin": {name: sample.origin[name] for name in _ORIGIN if name in sample.origin}},
    )
    check(conversation)
    try:
        conversation.to_json().encode()
    except UnicodeEncodeError as error:
        raise BadConversation("not_unicode", str(error)) from None
    return conversation
