"""The Berkeley Function Calling Leaderboard, its single-turn categories that an AST check judges (v4's files, in whose
live and non-live categories v2's stand).

The data come from the `bfcl-eval` package (Apache-2.0), read as files, or from a folder of the same files. The prompt
is the leaderboard's for models without a function-calling interface; an answer in <tool_call> tags counts as well.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.bfcl_calls import parse_calls
from mify.eval.bfcl_check import Call, check_calls
from mify.eval.completers import Sampling
from mify.eval.tasks import DataSource, Item, Judgement, Task, content_hash, read_jsonl

CATEGORIES = (
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple", "irrelevance",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
)  # fmt: skip
_PREFIX = "BFCL_v4_"
_SYSTEM = """You are an expert in composing functions.You are given a question and a set of possible functions. \
Based on the question, you will need to make one or more function/tool calls to achieve the purpose. If none of the \
functions can be used, point it out. If the given question lacks the parameters required by the function, also point \
it out.

You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of [func_name1(params_name1=\
params_value1, params_name2=params_value2...), func_name2(params)].  You SHOULD NOT include any other text in the \
response.

At each turn, you should try your best to complete the tasks requested by the user within the current turn. Continue \
to output functions to call until you have fulfilled the user's request to the best of your ability. Once you have no \
more functions to call, the system will consider the current turn complete and proceed to the next turn or task.

Here is a list of functions in json format that you can invoke.
{functions}
"""


def bfcl(category: str, folder: str | os.PathLike[str] | None = None) -> Task:
    """One category as a task.

    Args:
        category: one of `CATEGORIES`. folder: holds BFCL_v4_*.json and possible_answer/; by default the package's.

    Raises:
        MifyError: the data are not there, or an item lacks a field or an answer.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; it must be one of {', '.join(CATEGORIES)}")
    data = Path(folder) if folder is not None else packaged_folder()
    file = data / f"{_PREFIX}{category}.json"
    rows = read_jsonl(file, ("id", "question", "function"))
    answers: dict[str, Any] = {}
    if "relevance" not in category:
        answers_file = data / "possible_answer" / file.name
        found = read_jsonl(answers_file, ("id", "ground_truth"))
        answers = {str(row["id"]): row["ground_truth"] for row in found}
        missing = next((str(row["id"]) for row in rows if str(row["id"]) not in answers), None)
        if missing is not None:
            raise MifyError(f"{answers_file} has no answer to {missing}", "give both files of one release")
    items = [
        Item(
            str(row["id"]),
            {**row, "category": category, "language": language_of(category), "expected": answers.get(str(row["id"]))},
        )
        for row in rows
    ]
    return Task(
        name=f"bfcl-{category.replace('_', '-')}",
        items=items,
        source=DataSource(file.name, content_hash([json.dumps(item.fields, sort_keys=True) for item in items]),
                          "Apache-2.0"),
        sampling=Sampling(max_new_tokens=512, stop=("\n\nQuestion:",)),
        prompt=lambda item: (f"{system_prompt(item)}\nQuestion: {question(item)}\nFunction calls: ", None),
        answer=lambda item, completion: completion,
        judge=lambda answers: [judge(item, answer) for item, answer in answers],
        judged_by="parsed calls against the allowed values (AST)",
        metric="accuracy",
        canonical=canonical,
        chat=question,
        chat_answer=lambda item, completion: completion,
        system=system_prompt,
        texts=lambda item: (question(item),),
    )  # fmt: skip


def language_of(category: str) -> str:
    return "javascript" if "javascript" in category else "java" if "java" in category else "python"


def judge(item: Item, answer: str) -> Judgement:
    """An irrelevant function must not be called, a relevant one must be; elsewhere the calls must be the expected."""
    fields = item.fields
    try:
        calls = parse_calls(answer, fields["language"])
        problem = None if any(calls) else "no call"
    except ValueError as error:
        calls, problem = [], str(error)
    if "relevance" in fields["category"]:
        called = problem is None
        wanted = "irrelevance" not in fields["category"]
        return Judgement(called == wanted, "" if called == wanted else "a call" if called else problem or "no call")
    if problem is None:
        problem = judge_calls(item, calls)
    return Judgement(problem is None, problem or "")


def judge_calls(item: Item, calls: list[Call]) -> str | None:
    """What is wrong with calls, or None."""
    fields = item.fields
    return check_calls(
        fields["function"],
        calls,
        fields["expected"],
        language=fields["language"],
        parallel="parallel" in fields["category"],
    )


def canonical(item: Item) -> str:
    """The first allowed value of everything that has to be given, as calls; no calls where none is right."""
    expected = item.fields["expected"]
    if expected is None:
        called = item.fields["function"][0]["name"] if item.fields["category"] == "live_relevance" else None
        return f"[{called}()]" if called else "None of the functions can be used."
    return "".join(f"<tool_call>{json.dumps({'name': name, 'arguments': values})}</tool_call>"
                   for call in expected_calls(item) for name, values in call.items())  # fmt: skip


def expected_calls(item: Item) -> list[Call]:
    """The expected calls with the first allowed values, in the form `parse_calls` gives them; optional ones left out
    where that comes first.

    Values of Java and JavaScript functions are written as literals of their language; dictionaries of allowed values
    are resolved to dictionaries of values.
    """
    fields = item.fields
    functions = {function["name"]: function for function in fields["function"]}
    calls = []
    for wanted in fields["expected"]:
        ((name, allowed),) = wanted.items()
        described = functions[name]["parameters"]
        values = {}
        for parameter, choices in allowed.items():
            kept = [choice for choice in choices if choice != ""]
            wanted_first = choices[:1] == kept[:1] or parameter in described["required"]
            if kept and wanted_first and parameter in described["properties"]:
                kind = described["properties"][parameter]["type"]
                inner = described["properties"][parameter].get("items", {}).get("type")
                value = _resolved(kept[0], kind == "dict" or kind == "HashMap" or inner == "dict")
                values[parameter] = value if fields["language"] == "python" else _literal(value, kind, inner)
        calls.append({name: values})
    return calls


def _resolved(choice: Any, nested: bool) -> Any:
    if nested and isinstance(choice, list):
        return [_resolved(item, True) for item in choice]
    if nested and isinstance(choice, dict):
        return {
            key: values[0] for key, values in choice.items() if isinstance(values, list) and values and values[0] != ""
        }
    return choice


def _literal(value: Any, kind: str, inner: str | None) -> str:
    """A Python value as a literal of Java or JavaScript, of the types that the benchmark has."""
    if isinstance(value, bool):
        return str(value).lower()
    if kind in ("ArrayList", "Array") and isinstance(value, list):
        # As the leaderboard reads them: texts stand in quotes in an ArrayList, and without in an array.
        quoted = kind == "ArrayList" and inner in ("String", "char", None)
        parts = ", ".join(
            json.dumps(item) if quoted and isinstance(item, str) else _literal(item, inner or "", None)
            for item in value
        )
        return f"new ArrayList<>(Arrays.asList({parts}))" if kind == "ArrayList" else f"new {inner}[]{{{parts}}}"
    if kind == "HashMap" and isinstance(value, dict):
        puts = " ".join(f"put({json.dumps(key)}, {json.dumps(item)});" for key, item in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    suffix = {"long": "L", "Bigint": "n"}.get(kind, "")
    return f"{value}{suffix}"


def system_prompt(item: Item) -> str:
    """The leaderboard's system prompt with the item's functions, and the item's own system message behind it."""
    functions = [_described(function, item.fields["language"]) for function in item.fields["function"]]
    text = _SYSTEM.format(functions=json.dumps(functions, indent=4))
    own = [message["content"] for message in item.fields["question"][0] if message["role"] == "system"]
    return "\n\n".join([text, *own])


def question(item: Item) -> str:
    """The user's words; the few conversations of several turns as one text with the speakers' names."""
    messages = [message for message in item.fields["question"][0] if message["role"] != "system"]
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _described(function: dict[str, Any], language: str) -> dict[str, Any]:
    """The description as the leaderboard shows it: with the language, and parameters of Java and JavaScript as text."""
    name = {"python": "Python 3", "java": "Java 8 SDK", "javascript": "JavaScript"}[language]
    shown: dict[str, Any] = json.loads(json.dumps(function))
    shown["description"] += f" Note that the provided function is in {name} syntax."
    if language == "python":
        return shown
    short = {"java": "Java", "javascript": "JavaScript"}[language]
    for value in shown["parameters"]["properties"].values():
        kind = value["type"]
        value["description"] += (
            f" This parameter can be of any type of {short} object in string representation."
            if kind == "any"
            else f" This is {short} {kind} type parameter in string representation."
        )
        if kind in ("ArrayList", "Array", "array"):
            inner = value.pop("items")["type"]
            value["description"] += f" The list elements are of type {inner}; they are not in string representation."
        if kind == "dict" and "properties" in value:
            schema = json.dumps(value.pop("properties"))
            value["description"] += (
                " The dictionary entries have the following schema; they are not in string representation. " + schema
            )
        value["type"] = "string"
    return shown


def packaged_folder() -> Path:
    """The data inside the installed `bfcl-eval` package."""
    spec = find_spec("bfcl_eval")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        data = Path(folder) / "data"
        if (data / f"{_PREFIX}simple_python.json").is_file():
            return data
    raise MifyError(
        "BFCL's data are not here: the package bfcl-eval is not installed",
        "pip install --no-deps bfcl-eval",
    )
