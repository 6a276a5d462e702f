"""The chat template of models with our vocabulary: ChatML, reasoning in <think>, function calls in Hermes' form.

    <|im_start|>user
    text<|im_end|>
    <|im_start|>assistant
    <think>
    reasoning
    </think>

    text
    <tool_call>
    {"name": …, "arguments": {…}}
    </tool_call><|im_end|>

llama.cpp, vLLM (`--tool-call-parser hermes`, `--reasoning-parser qwen3`) and SGLang recognise them. No system message
is made up where there is none, but for the list of functions; reasoning of earlier turns is shown where it is given.
What a model is to write by itself stands in {% generation %}: from behind `assistant\\n` to <|im_end|>.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

# Written without `{%-` at line starts: what stands in a branch is exactly the text between its tags.
CHAT_TEMPLATE = (
    "{% set start = '<|im_start|>' %}{% set end = '<|im_end|>\\n' %}"
    "{% set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' %}"
    "{% if tools %}{{ start + 'system\\n' }}{% if system %}{{ system + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    "{{ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\\n<tool_call>\\n"
    '{"name": <function-name>, "arguments": <args-json-object>}'
    "\\n</tool_call>' + end }}"
    "{% elif system %}{{ start + 'system\\n' + system + end }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' or (message['role'] == 'system' and not loop.first) %}"
    "{{ start + message['role'] + '\\n' + message['content'] + end }}"
    "{% elif message['role'] == 'assistant' %}{{ start + 'assistant\\n' }}{% generation %}"
    "{% if message['reasoning_content'] %}"
    "{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    "{% if message['content'] %}{{ message['content'] }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{% set called = call['function'] if call['function'] else call %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n{\"name\": ' + (called['name'] | tojson) + ', \"arguments\": ' }}"
    "{% if called['arguments'] is string %}{{ called['arguments'] }}{% else %}"
    "{{ called['arguments'] | tojson }}{% endif %}{{ '}\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% elif message['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ start + 'user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ end }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ start + 'assistant\\n' }}{% endif %}"
)


def render_chat(
    template: str,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    marks: tuple[str, str] = ("", ""),
    **values: Any,
) -> str:
    """The text of a conversation, as `transformers` renders it.

    Args:
        add_generation_prompt: whether the assistant's next turn is begun.
        marks: what is written before and behind each {% generation %} block.
        values: `tools`, and what else a template asks for (`bos_token`, …).

    Raises:
        ValueError: the template refuses the conversation.
    """
    from jinja2 import TemplateError

    given: Mapping[str, Any] = {"tools": None, "bos_token": "", "eos_token": "", **values}
    try:
        return str(
            _compiled(template).render(
                messages=messages, add_generation_prompt=add_generation_prompt, generation_marks=marks, **given
            )
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None


@cache
def _compiled(template: str) -> Any:
    import json

    from jinja2 import TemplateError, nodes, pass_context
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    class Generation(Extension):
        """`transformers`' tag: what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        @pass_context
        def marked(self, context: Any, caller: Any) -> str:
            before, after = context["generation_marks"]
            return f"{before}{caller()}{after}"

    extensions: list[Any] = ["jinja2.ext.loopcontrols", Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    # Jinja's own filter escapes for HTML.
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)
