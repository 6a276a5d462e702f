"""A conversation as token ids, by the model's own chat template; what people write stays text.

The ids are those of the rendered string: special tokens where the template writes them, and each stretch between two of
them tokenized as one text, which is what `transformers` and llama.cpp do. They part from the string in one thing. A
special token's name *inside* a message would become its id there, so that a user could end his turn and begin the
assistant's. Here it is text: decoded, the ids give the string; tokenized, the string may give other ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text, …}, as `transformers` takes it"""


def chat_ids(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
) -> list[int]:
    """The ids of a conversation, the assistant's turn begun.

    Raises:
        MifyError: the template refuses the conversation.
    """
    try:
        return encode_chat(tokenizer, template, messages, tools, add_generation_prompt=True)[0]
    except ValueError as error:
        raise MifyError(str(error), "begin with a user's message, and let user and assistant alternate") from None


def encode_chat(
    tokenizer: Tokenizer,
    template: str,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    add_generation_prompt: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a conversation, and the range [first, last) of them that each {% generation %} block covers.

    A token that reaches from before a block into it (a blank line at its start) counts to the block, as in
    `transformers`.

    Raises:
        ValueError: the template refuses the conversation.
    """
    from mify.export.chat_template import render_chat

    special = tokenizer.special
    names, plain = _names(tuple(special))
    held = json.dumps([list(messages), list(tools or ())], ensure_ascii=False)
    guard, begin, end = _letters_outside(held)

    def guarded(value: Any) -> Any:
        """`value` with a letter put into every special token's name."""
        if isinstance(value, str):
            return names.sub(lambda found: found.group()[0] + guard + found.group()[1:], value)
        if isinstance(value, dict):
            return {guarded(key): guarded(item) for key, item in value.items()}
        return [guarded(item) for item in value] if isinstance(value, (list, tuple)) else value

    given = [list(messages), list(tools) if tools else None]
    if not plain or names.search(held):
        given = guarded(given)
    eot = next((name for name, index in special.items() if index == tokenizer.eot_id), "")
    text = render_chat(
        template, given[0] or [], tools=given[1], marks=(begin, end), add_generation_prompt=add_generation_prompt,
        bos_token=eot, eos_token=eot,
    )  # fmt: skip
    pieces = names.split(text)  # text, special token, text, …
    stretches = [piece.replace(guard, "") for piece in pieces[::2]]
    marks = re.compile(f"[{begin}{end}]")
    encoded, bounds = (part.tolist() for part in tokenizer.encode_arrays([marks.sub("", s) for s in stretches]))
    ids: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    for number, stretch in enumerate(stretches):
        own = encoded[bounds[number] : bounds[number + 1]]
        for found in marks.finditer(stretch):
            before = marks.sub("", stretch[: found.start()])
            if found.group() == begin:
                starts.append(len(ids) + _tokens_before(own, before, tokenizer, round_up=False))
            else:
                stops.append(len(ids) + _tokens_before(own, before, tokenizer, round_up=True))
        ids += own
        if 2 * number + 1 < len(pieces):
            ids.append(special[pieces[2 * number + 1]])
    return ids, list(zip(starts, stops, strict=True))


def _tokens_before(ids: Sequence[int], text: str, tokenizer: Tokenizer, *, round_up: bool) -> int:
    """How many of `ids` lie in front of the end of `text`; the one that it ends in counts if `round_up`."""
    size = len(text.encode())
    for count, token in enumerate(ids):
        if size <= 0:
            return count
        size -= len(tokenizer.token_bytes[token])
        if size < 0:
            return count + round_up
    return len(ids)


@lru_cache(maxsize=8)
def _names(special: tuple[str, ...]) -> tuple[re.Pattern[str], bool]:
    """A pattern that finds special tokens' names, and whether JSON writes these names as they are."""
    longest_first = sorted(special, key=len, reverse=True)
    found = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    return found, all(json.dumps(name, ensure_ascii=False)[1:-1] == name for name in special)


def _letters_outside(text: str) -> list[str]:
    """Three letters of the private use area that are not in `text`."""
    used = set(_PRIVATE.findall(text))
    return list(islice((letter for code in range(0xE000, 0xF8FF) if (letter := chr(code)) not in used), 3))


_PRIVATE = re.compile("[\ue000-\uf8ff]")
