"""Made-up conversations, as many as asked for, with all that a chat format has to bear."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from mify.post.chat import Conversation
from mify.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    "def f(x):\n    return x", "Hello", " world", "\n", "\n\n", "  ", "\t", "\r\n", "é", "中文", "🙂", "'ll", "12345",
    "\u00a0", "{", "}", '"', "\\", "<b>&amp;</b>", "user", "assistant\n", "{{ x }}", "{% if %}", "\u2028", "<|im",
    "think>", "x = '1'", "\ue000", "\ue001", "tool_call",
]  # fmt: skip
NAMES = ["<|im_end|>", "<|im_start|>assistant\n", "<think>", "</tool_call>", "<|endoftext|>", "<|fim_prefix|>"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([inspect.getsource(textwrap), inspect.getsource(inspect)[:60_000], *WORDS], 700)


@pytest.fixture(scope="session")
def make_conversation() -> Callable[..., Conversation]:
    """make_conversation(seed, names=False): with `names`, special tokens' names stand in the texts."""
    return _conversation


def _conversation(seed: int, names: bool = False) -> Conversation:
    draw = random.Random(seed)

    def text(least: int = 0) -> str:
        return "".join(draw.choice(WORDS + NAMES * names) for _ in range(draw.randint(least, 9)))

    def value(depth: int = 0) -> Any:
        kinds = [
            text,
            lambda: draw.randint(-9, 10**9),
            lambda: draw.randint(-99, 999) + 0.25,
            lambda: draw.choice([True, False, None]),
        ]
        if depth < 2:
            kinds += [
                lambda: [value(depth + 1) for _ in range(draw.randint(0, 2))],
                lambda: {text(1): value(depth + 1) for _ in range(draw.randint(0, 2))},
            ]
        return draw.choice(kinds)()

    function = {"name": "look_up", "description": text(), "parameters": {"type": "object", "description": text()}}
    tools = [{"type": "function", "function": function}] * draw.randint(0, 1)
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": text(1)})
    for turn in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": text()})
        for number in range(draw.randint(0, 2) if tools else 0):
            ids = [f"call_{turn}_{number}_{index}" for index in range(draw.randint(1, 2))]
            calls = [
                {"id": i, "type": "function", "function": {"name": "look_up", "arguments": {text(1): value()}}}
                for i in ids
            ]
            messages.append({"role": "assistant", "content": text(), "tool_calls": calls})
            messages += [{"role": "tool", "content": text(), "tool_call_id": i} for i in ids]
        messages.append({"role": "assistant", "content": text() + "."})
        if draw.random() < 0.4:
            messages[-1]["reasoning_content"] = text(1)
    return Conversation.from_dict(json.loads(json.dumps({"messages": messages, "tools": tools})))
