"""The code in a chat model's answer."""

from __future__ import annotations

import re


def code_blocks(completion: str) -> list[str]:
    """The fenced blocks of an answer, the last of them perhaps unclosed; the whole answer where there is none."""
    return re.findall(r"```[^\n`]*\n(.*?)(?:```|\Z)", completion, re.DOTALL) or [completion]


def block_that_defines(completion: str, name: str) -> str:
    """The first block that defines the function `name`, else the first block."""
    blocks = code_blocks(completion)
    return next((block for block in blocks if re.search(rf"\bdef\s+{re.escape(name)}\b", block)), blocks[0])
