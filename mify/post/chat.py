"""Conversations: the one form that data for fine-tuning has here, its lines of JSON, and its token ids.

A line is what `transformers`' chat templates take, arguments of calls as objects, and where it comes from:

    {"format": "mify-conversation", "version": 1, "id": "…", "source": "…", "category": "…",
     "tools": [{"type": "function", "function": {"name", "description", "parameters"}}],
     "messages": [{"role": "user", "content": "…"},
                  {"role": "assistant", "content": "", "reasoning_content": "…",
                   "tool_calls": [{"id": "call_1", "type": "function",
                                   "function": {"name": "…", "arguments": {…}}}]},
                  {"role": "tool", "content": "…", "tool_call_id": "call_1"}, …]}

Only `messages` has to be there; a line without `format` is read as an OpenAI client would write it, arguments as JSON
texts. What else a line or a message holds is kept in `extra`. What is wrong with a conversation has a name, so that
rejects can be counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer

FORMAT, VERSION = "mify-conversation", 1
ROLES = ("system", "user", "assistant", "tool")
Role = Literal["system", "user", "assistant", "tool"]


class BadConversation(ValueError):
    """What is wrong with a conversation: `reason`, a name to count by, and a text that says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason.replace('_', ' ')}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function: its arguments by name, as JSON values."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What one party says.

    Args:
        role: who. content: the text.
        reasoning: of the assistant, before the text. tool_calls: of the assistant, behind it.
        tool_call_id: of a tool's result: the call that it answers.
        weight: of an assistant's message: 0 takes its loss away.
        extra: other keys that its line held.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    weight: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a chat template and a line of JSON take it."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            plain["reasoning_content"] = self.reasoning
        if self.tool_calls:
            plain["tool_calls"] = [
                ({"id": call.id} if call.id is not None else {})
                | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        if self.weight != 1:
            plain["weight"] = self.weight
        return plain | self.extra

    @staticmethod
    def from_dict(value: Any) -> Message:
        """Raises BadConversation: an unknown role, a content that is no text, a call that is none."""
        if not isinstance(value, Mapping):
            raise BadConversation("bad_message", f"{_short(value)} is no object with role and content")
        rest = dict(value)
        role, content = rest.pop("role", None), rest.pop("content", None)
        if role not in ROLES:
            raise BadConversation("unknown_role", f"{role!r} is none of {', '.join(ROLES)}")
        if isinstance(content, list) and all(_is_text_part(part) for part in content):
            content = "".join(part["text"] for part in content)
        calls = rest.pop("tool_calls", None) or []
        if not isinstance(content, str) and not (content is None and role == "assistant"):
            kind = "absent" if content is None else type(content).__name__
            raise BadConversation("content_not_text", f"the content of a {role} message is {kind}, not text")
        reasoning = rest.pop("reasoning_content", None) or ""
        if not isinstance(reasoning, str):
            raise BadConversation("content_not_text", "reasoning_content is no text")
        call_id, weight = rest.pop("tool_call_id", None), rest.pop("weight", 1)
        if weight not in (0, 1):
            raise BadConversation("bad_message", f"weight = {weight!r} is neither 0 nor 1")
        if call_id is not None and not isinstance(call_id, str):
            raise BadConversation("bad_message", f"tool_call_id = {call_id!r} is no text")
        if not isinstance(calls, list):
            raise BadConversation("bad_tool_call", f"tool_calls is {type(calls).__name__}, not a list")
        if role != "assistant" and (calls or reasoning):
            raise BadConversation("bad_message", f"a {role} message has calls or reasoning, which are the assistant's")
        parsed = tuple(_call(call) for call in calls)
        return Message(role, content or "", reasoning, parsed, call_id, int(weight), rest)


@dataclass(frozen=True)
class Conversation:
    """Messages, the functions that may be called in them, and where they come from.

    Args:
        tools: in OpenAI's form, as `mify.post.functions` checks it.
        id, source, category: for counting and mixing; "" where unknown.
        extra: other keys that its line held.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    id: str = ""
    source: str = ""
    category: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON holds it."""
        plain: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        plain |= {key: value for key in ("id", "source", "category") if (value := getattr(self, key))}
        if self.tools:
            plain["tools"] = list(self.tools)
        plain["messages"] = [message.to_dict() for message in self.messages]
        return plain | self.extra

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @staticmethod
    def from_dict(value: Any) -> Conversation:
        """Reads a line's value. The conversation's order and its calls are not looked at: see `check`.

        Raises:
            BadConversation: it is no conversation.
        """
        if not isinstance(value, Mapping):
            raise BadConversation("not_an_object", f"{_short(value)} is no object with messages")
        rest = dict(value)
        found = rest.pop("format", FORMAT), rest.pop("version", VERSION)
        if found != (FORMAT, VERSION):
            raise BadConversation(
                "unknown_format", f"{found[0]} of version {found[1]}; this mify reads {FORMAT} {VERSION}"
            )
        messages, tools = rest.pop("messages", None), rest.pop("tools", None) or []
        if not isinstance(messages, list) or not messages:
            raise BadConversation("no_messages", "there is no list of messages in it")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadConversation("bad_tool", "tools is no list of functions")
        names = {key: rest.pop(key, None) or "" for key in ("id", "source", "category")}
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise BadConversation("not_json", str(error)) from None
        texts = {key: name if isinstance(name, str) else json.dumps(name) for key, name in names.items()}
        return Conversation(tuple(map(Message.from_dict, messages)), tuple(tools), **texts, extra=rest)

    @staticmethod
    def from_json(line: str | bytes) -> Conversation:
        """Raises BadConversation: the line is no JSON, or no conversation."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadConversation("not_json", str(error)) from None
        return Conversation.from_dict(value)

    @cached_property
    def key(self) -> bytes:
        """SHA-256 of what is said and may be called, whatever the id: equal conversations have equal keys."""
        said = [[message.to_dict() for message in self.messages], list(self.tools)]
        return sha256(json.dumps(said, ensure_ascii=False, sort_keys=True).encode()).digest()


def check(conversation: Conversation, *, answered: bool = True) -> None:
    """Raises BadConversation where the parties do not take turns, or a call has no result or more than one.

    A system message comes first or not at all; user and assistant alternate, the user beginning; between two of the
    assistant's turns stand the results of the first one's calls.

    Args:
        answered: whether the assistant has to say something; a prompt need not hold an answer.
    """
    before: Message | None = None
    open_calls: list[ToolCall] = []
    called: set[str] = set()
    for place, message in enumerate(conversation.messages):
        role, last = message.role, before.role if before is not None else None
        follows = {
            "system": last is None,
            "user": last in (None, "system", "assistant"),
            "assistant": last in ("user", "tool"),
            "tool": last in ("assistant", "tool"),
        }
        if not follows[role]:
            raise BadConversation(
                "roles_out_of_order", f"message {place} is the {role}'s, behind {last or 'nothing'}"
            )  # fmt: skip
        if role == "tool":
            _take_result(message, place, open_calls)
        elif open_calls:
            raise BadConversation("result_missing", f"message {place} comes before {open_calls[0].name} has answered")
        if role == "assistant":
            if not message.content.strip() and not message.tool_calls:
                raise BadConversation("empty_assistant_turn", f"message {place} neither says nor calls anything")
            for call in message.tool_calls:
                if call.id is not None and call.id in called:
                    raise BadConversation("duplicate_call_id", f"{call.id!r} is called in message {place} once more")
                called |= {call.id} if call.id is not None else set()
            open_calls = list(message.tool_calls)
        before = message
    if answered and not any(message.role == "assistant" and message.weight for message in conversation.messages):
        raise BadConversation("nothing_to_learn", "the assistant says nothing in it that carries loss")


def _take_result(message: Message, place: int, open_calls: list[ToolCall]) -> None:
    wanted = message.tool_call_id
    for index, call in enumerate(open_calls):
        if wanted is None or call.id is None or call.id == wanted:
            del open_calls[index]
            return
    raise BadConversation("result_without_call", f"message {place} answers {wanted or 'no call'}")


def render(
    conversation: Conversation, tokenizer: Tokenizer, *, template: str | None = None, prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each, whether it carries loss as a target.

    Loss lies on what the assistant writes: reasoning, text, calls and the <|im_end|> behind them. Both are equal to
    `apply_chat_template(return_assistant_tokens_mask=True)` of `transformers`, but for special tokens' names inside
    messages, which stay text here, and for messages of weight 0.

    Args:
        template: Jinja with {% generation %} around the assistant's words; by default that of our vocabulary.
        prompt: begin the assistant's next turn.

    Raises:
        MifyError: the tokenizer lacks <|im_start|> or <|im_end|>, which our template is made of.
        ValueError: the template refuses the conversation.
    """
    from mify.chat import encode_chat

    if template is None:
        from mify.export.chat_template import CHAT_TEMPLATE

        if tokenizer.im_start_id is None or tokenizer.im_end_id is None:
            raise MifyError("the tokenizer lacks <|im_start|> or <|im_end|>", "use one that has them")
        template = CHAT_TEMPLATE
    messages = [message.to_dict() for message in conversation.messages]
    ids, spans = encode_chat(tokenizer, template, messages, conversation.tools or None, add_generation_prompt=prompt)
    weights = [message.weight for message in conversation.messages if message.role == "assistant"]
    if len(spans) != len(weights):
        raise ValueError(f"the chat template marks {len(spans)} of {len(weights)} assistant turns with generation")
    loss = [False] * len(ids)
    for (first, last), weight in zip(spans, weights, strict=True):
        if weight:
            loss[first:last] = [True] * (last - first)
    return ids, loss


def _call(value: Any) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadConversation("bad_tool_call", f"{_short(value)} has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "bad_tool_call")
    if not isinstance(arguments, dict):
        raise BadConversation("bad_tool_call", f"the arguments of {function['name']} are no object")
    name = value.get("id")
    return ToolCall(function["name"], arguments, name if name is None else str(name))


def parse_json(text: str, reason: str) -> Any:
    """The value of a JSON text. Raises BadConversation with `reason`: no JSON, a key that is there twice, NaN."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadConversation(reason, f"a key is there twice in {_short(text)}")
        return found

    def refuse(word: str) -> Any:
        raise BadConversation(reason, f"{word} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=cast("Callable[..., Any]", once), parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadConversation(reason, f"{_short(text)} is no JSON ({error})") from None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
