"""A conversation as token ids, by the model's own chat template; what users write stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text, …}"""


def chat_ids(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
) -> list[int]:
    """The ids of a conversation, the assistant's turn begun.

    The template's special tokens become their ids. A special token's name inside a message does not: a letter that no
    message holds is put into it before the template is filled in, and taken out afterwards.

    Raises:
        MifyError: the template refuses the conversation.
    """
    from mify.export.chat_template import render_chat

    names = sorted(tokenizer.special, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names))) if names else None
    contents = "".join(str(message.get("content") or "") for message in messages)
    guard = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in contents)

    def guarded(message: Message) -> Message:
        text = message.get("content")
        if pattern is None or not isinstance(text, str):
            return message
        return {**message, "content": pattern.sub(lambda found: found.group()[0] + guard + found.group()[1:], text)}

    end = next((name for name, index in tokenizer.special.items() if index == tokenizer.eot_id), "")
    try:
        turns = [guarded(message) for message in messages]
        text = render_chat(template, turns, tools=tools, bos_token=end, eos_token=end)
    except ValueError as error:
        raise MifyError(str(error), "begin with a user's message, and let user and assistant alternate") from None
    ids: list[int] = []
    place = 0
    for found in pattern.finditer(text) if pattern is not None else ():
        ids += tokenizer.encode(text[place : found.start()].replace(guard, ""))
        ids.append(tokenizer.special[found.group()])
        place = found.end()
    return ids + tokenizer.encode(text[place:].replace(guard, ""))
