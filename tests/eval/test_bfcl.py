"""Function calls: parsed, judged as the leaderboard's own checker judges them, item by item."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.eval.bfcl import CATEGORIES, bfcl, canonical, expected_calls, judge, judge_calls
from mify.eval.bfcl_calls import parse_calls
from mify.eval.bfcl_check import Call
from mify.eval.bfcl_values import java_value, javascript_value
from mify.eval.tasks import Item

pytest.importorskip("bfcl_eval", reason="requirements/nodeps.txt is not installed")
AST_CATEGORIES = [category for category in CATEGORIES if "relevance" not in category]


def test_calls_are_parsed() -> None:
    assert parse_calls('[math.add(a=1, b=-2.5), say(text="a, b", to=["x", (1, 2)], deep={"k": [True, None]})]') == [
        {"math.add": {"a": 1, "b": -2.5}},
        {"say": {"text": "a, b", "to": ["x", (1, 2)], "deep": {"k": [True, None]}}},
    ]
    assert parse_calls("f(x=2 * 3 + 1, y=name, z=g(1), w=a[0])") == [
        {"f": {"x": 7, "y": "name", "z": "g(1)", "w": "a[0]"}}
    ]
    assert parse_calls("```[f()]```") == [{"f": {}}]
    tags = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>{"name": "g", "arguments": {}}'
    assert parse_calls(tags) == [{"f": {"x": 1}}, {"g": {}}]
    source = '[Shop.buy(items=new ArrayList<>(Arrays.asList("a", "b")), n=5L, name="x, y", f=(a, b) => a[0])]'
    assert parse_calls(source, "java") == [
        {"Shop.buy": {"items": 'new ArrayList<>(Arrays.asList("a", "b"))', "n": "5L", "name": "x, y",
                      "f": "(a, b) => a[0]"}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "language"),
    [("I cannot do that.", "python"), ("[1, 2]", "python"),
     ("[f(x=2 ** 99999999)]", "python"), ("[f(x=1/0)]", "python"),
     ("[f(x=lambda: 1)]", "python"), ("[" * 4000, "python"), ("<tool_call>{nonsense</tool_call>", "python"),
     ('<tool_call>{"name": 3}</tool_call>', "python"), ("[f(5)]", "java"), ("[f(a=1, a=2)]", "java"),
     ('[f(a="x)]', "javascript"), ("hello", "java")],
)  # fmt: skip
def test_what_is_no_call_is_none(answer: str, language: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        parse_calls(answer, language)


def test_literals_of_java_and_javascript() -> None:
    assert java_value("5L", "long") == 5
    assert java_value("5", "long") == "5"
    assert java_value("2.5f", "float") == 2.5
    assert java_value("new int[]{1, 2}", "Array", "integer") == [1, 2]
    assert java_value('new ArrayList<>(Arrays.asList("a", "b"))', "ArrayList", "String") == ["a", "b"]
    assert java_value('new HashMap<String, Object>() {{ put("k", 1); put("t", true); }}', "HashMap") == {
        "k": 1,
        "t": True,
    }
    assert javascript_value("[[1, 2], [3, 4]]", "array", "array") == [[1, 2], [3, 4]]
    assert javascript_value("new Array(1n, 2n)", "array", "Bigint") == [1, 2]
    assert javascript_value("{'a': 1, \"b\": [2, 'x']}", "dict") == {"a": 1, "b": [2, "x"]}
    assert javascript_value("not a number", "integer") == "not a number"


# Nothing satisfies these, by the leaderboard's checker either.
REQUIRED = "a required argument has no allowed value"
IMPOSSIBLE = {
    "simple_java_36": "an array of any type is read as texts, and numbers are expected in it",
    "simple_java_65": "an array of any type is read as texts, and truth values are expected in it",
    "live_simple_106-63-0": REQUIRED,
    "live_simple_112-68-0": REQUIRED,
    "live_multiple_507-149-4": REQUIRED,
    "live_multiple_862-181-3": "an argument is expected that the function does not have",
    "live_multiple_964-207-0": REQUIRED,
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_expected_answers_pass(category: str) -> None:
    task = bfcl(category)
    failed = {item.id: result.detail for item in task.items if not (result := judge(item, canonical(item))).passed}
    assert set(failed) == {name for name in IMPOSSIBLE if name.startswith(f"{category}_")}
    assert any(judge(item, "[other_function(x=1)]").passed for item in task.items) == (category == "live_relevance")


def mutants(calls: list[Call]) -> Iterator[list[Call]]:
    """The calls, and what a model may write instead."""
    yield calls
    yield []
    yield [*calls, calls[0]]
    yield calls[::-1]
    yield [{"elsewhere." + name: values for name, values in calls[0].items()}, *calls[1:]]
    for index, call in enumerate(calls[:2]):
        ((name, values),) = call.items()

        def changed(new: dict[str, Any], name: str = name, index: int = index) -> list[Call]:
            return [*calls[:index], {name: new}, *calls[index + 1 :]]

        yield changed({**values, "unheard_of": 1})
        for parameter, value in list(values.items())[:3]:
            yield changed({key: other for key, other in values.items() if key != parameter})
            for other in (str(value), [value], None, 0, {}):
                yield changed({**values, parameter: other})
            if isinstance(value, str):
                yield changed({**values, parameter: value.upper().replace(" ", "-")})
                yield changed({**values, parameter: value + "x"})
            elif isinstance(value, (int, float)):
                yield changed({**values, parameter: value + 1})
                yield changed({**values, parameter: float(value)})
            elif isinstance(value, list):
                yield changed({**values, parameter: value[::-1]})
                yield changed({**values, parameter: tuple(value)})
                yield changed({**values, parameter: [*value, 1]})
            elif isinstance(value, dict) and value:
                yield changed({**values, parameter: dict(list(value.items())[1:])})
                yield changed({**values, parameter: {**value, "more": 1}})
                yield changed({**values, parameter: dict.fromkeys(value, "?")})


ORIGINAL = """
import collections, json, sys, types
stub = types.ModuleType("bfcl_eval.constants.model_config")  # the real one imports every provider's client
stub.MODEL_CONFIG_MAPPING = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
sys.modules[stub.__name__] = stub
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

for line in sys.stdin:
    job = eval(line)
    try:
        valid = ast_checker(job["function"], job["calls"], job["expected"], Language[job["language"].upper()],
                            job["category"], "none")["valid"]
    except Exception:
        valid = None  # it crashes on some answers, which then count as wrong
    print(json.dumps(valid))
"""


def compared(items: list[Item]) -> tuple[int, int, list[str]]:
    """(programs compared, of which right, where the two disagree)."""
    jobs, ours = [], []
    for item in items:
        fields = item.fields
        for calls in mutants(expected_calls(item)):
            try:
                ours.append(judge_calls(item, calls) is None)
            except Exception as error:
                raise AssertionError(f"{item.id}: {calls}") from error
            names = ("function", "expected", "language", "category")
            jobs.append(repr({"calls": calls, **{name: fields[name] for name in names}}))
    done = subprocess.run(
        [sys.executable, "-c", ORIGINAL], input="\n".join(jobs), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = [json.loads(line) for line in done.stdout.split()]
    assert len(theirs) == len(ours)
    return len(ours), sum(ours), [job for job, a, b in zip(jobs, ours, theirs, strict=True) if a != bool(b)]


def test_judged_as_the_leaderboard_judges() -> None:
    items = [item for category in AST_CATEGORIES for item in bfcl(category).items[::25]]
    count, right, differ = compared(items)
    assert count > 1500
    assert 100 < right < count
    assert differ == []


@pytest.mark.slow
@pytest.mark.parametrize("category", AST_CATEGORIES)
def test_every_item_judged_as_the_leaderboard_judges(category: str) -> None:
    _, _, differ = compared(list(bfcl(category).items))
    assert differ == []


def test_prompts_show_the_functions() -> None:
    task = bfcl("simple_java")
    assert task.system is not None
    text = task.system(task.items[1])
    assert '"name": "SQLCompletionAnalyzer.makeProposalsFromObject"' in text
    assert "Note that the provided function is in Java 8 SDK syntax." in text
    assert "This is Java HashMap type parameter in string representation." in text
    assert task.chat is not None
    assert task.chat(task.items[1]).startswith("Help me generate SQL completion proposals")


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="does not exist"):
        bfcl("multiple", tmp_path)
    (tmp_path / "BFCL_v4_multiple.json").write_text('{"id": "multiple_0", "question": [[]], "function": []}\n')
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "possible_answer" / "BFCL_v4_multiple.json").write_text('{"id": "other", "ground_truth": []}\n')
    with pytest.raises(MifyError, match="has no answer to multiple_0"):
        bfcl("multiple", tmp_path)
