"""How to talk to a model, beyond its weights and vocabulary: where text begins and ends, and the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mify.export.chat_template import CHAT_TEMPLATE
from mify.special_tokens import IM_END, IM_START

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conventions:
    """Token ids are None (or empty) where the model has none.

    Args:
        bos_id: begin of text.
        eos_ids: generation stops at any of these; the first is *the* end-of-text token.
        pad_id: padding.
        add_bos: whether a prompt begins with `bos_id`.
        chat_template: Jinja, as `transformers` and llama.cpp take it.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    add_bos: bool = False
    chat_template: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> Conventions:
        """The conventions that follow from a vocabulary alone.

        Text ends at the end-of-text token, a chat turn at `<|im_end|>`: a base model never writes the latter, so
        naming both is right for base and chat models. Nothing is put before a prompt. A vocabulary with tokens for
        turns has the chat template that they are for, which is also what fine-tuning trains on.
        """
        if tokenizer is None:
            return cls()
        ends = [token for token in (tokenizer.eot_id, tokenizer.im_end_id) if token is not None]
        pad = tokenizer.pad_id if tokenizer.pad_id is not None else (ends[0] if ends else None)
        turns = IM_START in tokenizer.special and IM_END in tokenizer.special
        template = CHAT_TEMPLATE if turns else None
        return cls(bos_id=tokenizer.eot_id, eos_ids=tuple(ends), pad_id=pad, chat_template=template)
