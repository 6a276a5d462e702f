"""What a model is asked and what it answers, as token ids: the one place where preferences and rollouts get theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.post.chat import Conversation, Message, check

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer

Prompt = str | Sequence[dict[str, Any]]
"""A text to be continued, or a conversation whose next turn is the assistant's."""


def check_prompt(value: Any) -> Prompt:
    """`value` where it is a prompt. Raises ValueError saying what is wrong."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("the prompt is neither a text nor a list of messages")
    messages = tuple(map(Message.from_dict, value))
    if messages[-1].role == "assistant":
        raise ValueError("the prompt ends with the assistant's turn")
    check(Conversation(messages), answered=False)
    return value


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """A text's tokens, or those of a conversation with the assistant's turn begun.

    Raises:
        MifyError: the chat template refuses the conversation.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    from mify.chat import chat_ids
    from mify.export.chat_template import CHAT_TEMPLATE

    return chat_ids(tokenizer, CHAT_TEMPLATE, prompt)


def end_id(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """The token that ends an answer: of a text end-of-text, of a turn <|im_end|>.

    Raises:
        MifyError: the tokenizer lacks it.
    """
    end = tokenizer.eot_id if isinstance(prompt, str) else tokenizer.im_end_id
    if end is None:
        raise MifyError("the tokenizer has no token that ends an answer", "use one with <|endoftext|> and <|im_end|>")
    return end


def answer_ids(prompt: Prompt, answer: str, tokenizer: Tokenizer) -> list[int]:
    """An answer's tokens and the token that ends it."""
    return [*tokenizer.encode(answer), end_id(prompt, tokenizer)]
