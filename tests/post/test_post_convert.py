"""Formats: what is read and written again says what it said, on BFCL's rows and on rows of each format's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mify.cli.app import app
from mify.errors import MifyError
from mify.eval.bfcl import packaged_folder
from mify.post.chat import BadConversation, Conversation, check
from mify.post.convert import FORMATS, Options, convert_files, detect_format, read_rows, write_row
from mify.post.functions import check_functions

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "It's the weather.", "parameters": PARAMETERS}
CALL = {"name": "weather", "arguments": {"city": "L'Aquila", "days": 2}}
ROWS: dict[str, list[dict[str, Any]]] = {
    "openai": [
        {
            "messages": [
                {"role": "user", "content": "Rain?", "name": "ann"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function",
                     "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
                {"role": "tool", "content": "no", "tool_call_id": "c1"},
                {"role": "assistant", "content": "No.", "weight": 0},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes."},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "parallel_tool_calls": False,
        },
    ],
    "hermes": [
        {
            "id": "h1", "category": "weather",
            "conversations": [
                {"from": "system", "value": f"Call. <tools> [{json.dumps(FUNCTION)}] </tools> So."},
                {"from": "human", "value": "Rain?"},
                {"from": "gpt", "value": "<think>\nask\n</think>\n\nI look.\n<tool_call>\n" + json.dumps(CALL)
                 + "\n</tool_call>\n<tool_call>\n" + json.dumps(CALL) + "\n</tool_call>"},
                {"from": "tool",
                 "value": "<tool_response>\nno\n</tool_response>\n<tool_response>\n{}\n</tool_response>"},
                {"from": "gpt", "value": "No."},
            ],
            "tools": json.dumps([{"type": "function", "function": FUNCTION}]),
            "task": "t",
        },
    ],
    "sharegpt": [
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "no"},
                {"from": "gpt", "value": "No."},
            ],
            "tools": json.dumps([{"type": "function", "function": FUNCTION}]),
        },
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello", "markdown": None}]},
    ],
    "chatml": [
        {"text": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\nyou<|im_end|>\n"
         "<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello<|im_end|>\n", "n": 1},
    ],
    "xlam": [
        {
            "id": 7, "query": "Rain in Rome?",
            "answers": '[{"name": "weather", "arguments": {"city": "Rome", "bounds": [1.5, 2]}}]',
            "tools": json.dumps([{"name": "weather", "description": "d", "parameters": {
                "city": {"description": "where", "type": "str"},
                "bounds": {"description": "box", "type": "Tuple[float, float], optional"},
                "lang": {"description": "l", "type": "str", "default": "en"},
                "tags": {"description": "l", "type": "List[int], optional"},
                "any": {"description": "l", "type": "Callable[[int], str], optional"}}}]),
        },
    ],
    "glaive": [
        {
            "system": "SYSTEM: You are a helpful assistant with access to the following functions. "
            "Use them if required -\n" + json.dumps(FUNCTION, indent=4) + "\n",
            "chat": "USER: Rain in L'Aquila?\n\n\nASSISTANT: <functioncall> {\"name\": \"weather\", \"arguments\": "
            "'{\"city\": \"L\\'Aquila\"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {\"rain\": false}\n\n\n"
            "ASSISTANT: No. <|endoftext|>",
        },
        {
            "system": "SYSTEM: You are kind.\n",
            "chat": "USER: Hi\n\n\nASSISTANT: Hello\n\nyou <|endoftext|>\n\n\nUSER: Bye\n\n\n"
            "ASSISTANT: Bye <|endoftext|>",
        },
    ],
    "magicoder": [
        {"lang": "python", "raw_index": 3, "index": 1, "seed": "s", "problem": "Add.", "solution": "def f(): ..."},
        {"instruction": "Add.", "response": "def f(): ..."},
    ],
    "alpaca": [
        {"instruction": "Add.", "input": "", "output": "3"},
        {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief.",
         "history": [["a", "b"], ["c", "d"]]},
    ],
}  # fmt: skip


def parsed(value: Any) -> Any:
    """`value` with what is a JSON text in it read."""
    if isinstance(value, dict):
        return {key: parsed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [parsed(item) for item in value]
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return parsed(json.loads(value))
    return value


@pytest.mark.parametrize("name", ROWS)
def test_a_row_comes_back(name: str) -> None:
    for row in ROWS[name]:
        before = json.dumps(row)
        assert detect_format(row) == name
        conversation = FORMATS[name].read(row)
        check(conversation)
        check_functions(conversation)
        assert json.dumps(row) == before
        assert Conversation.from_json(conversation.to_json()) == conversation
        assert parsed(FORMATS[name].write(conversation)) == parsed(row)


def test_what_the_rows_say() -> None:
    read = {name: [FORMATS[name].read(row) for row in rows] for name, rows in ROWS.items()}
    hermes = read["hermes"][0].messages
    assert [message.role for message in hermes] == ["user", "assistant", "tool", "tool", "assistant"]
    assert (hermes[1].reasoning, hermes[1].content, len(hermes[1].tool_calls)) == ("ask", "I look.", 2)
    assert read["glaive"][0].messages[1].tool_calls[0].arguments == {"city": "L'Aquila"}
    assert read["glaive"][0].tools == read["hermes"][0].tools
    parameters = read["xlam"][0].tools[0]["function"]["parameters"]
    assert parameters["required"] == ["city"]
    assert parameters["properties"]["bounds"]["type"] == "array"
    assert parameters["properties"]["tags"]["items"] == {"type": "integer"}
    assert read["alpaca"][1].messages[-2].content == "Add.\n\n1, 2"
    assert read["magicoder"][0].extra["lang"] == "python"
    old = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "function_call": {
        "name": "weather", "arguments": "{}"}}, {"role": "function", "name": "weather", "content": "1"}],
        "functions": [FUNCTION]}  # fmt: skip
    assert [m.role for m in FORMATS["openai"].read(old).messages] == ["user", "assistant", "tool"]


def bfcl_rows() -> list[dict[str, Any]]:
    try:
        folder = packaged_folder()
    except MifyError as error:
        pytest.skip(str(error))
    return [
        row for name in ("simple_python", "simple_java", "simple_javascript", "multiple", "parallel_multiple",
                         "live_simple", "live_parallel", "irrelevance")
        for row in read_rows(folder / f"BFCL_v4_{name}.json")
    ]  # fmt: skip


def test_bfcl_comes_back_and_goes_through_every_format() -> None:
    """Real functions and calls: to each format that can say them, and back, equal."""
    through: dict[str, int] = {}
    for row in bfcl_rows():
        conversation = FORMATS["bfcl"].read(row)
        assert FORMATS["bfcl"].write(conversation) == row
        plain = replace(conversation, extra={}, id="", tools=tuple(conversation.tools))
        for name in ("openai", "hermes", "sharegpt", "chatml", "glaive", "xlam"):
            try:
                written = write_row(plain, name)
            except BadConversation as error:
                assert error.reason == "not_expressible"  # noqa: PT017
                continue
            back = FORMATS[name].read(json.loads(json.dumps(written)))
            assert back.messages == plain.messages, (name, written)
            if name != "xlam":  # whose types are Python's
                assert back.tools == plain.tools, name
            through[name] = through.get(name, 0) + 1
    assert len(through) == 6
    assert min(through.values()) > 1000, through


def test_bfcls_own_defects_have_names(tmp_path: Path) -> None:
    try:
        folder = packaged_folder()
    except MifyError as error:
        pytest.skip(str(error))
    tally = convert_files([folder / "BFCL_v4_live_simple.json"], tmp_path, Options(), lambda _: None)
    assert (tally.rows, tally.kept, dict(tally.reasons)) == (258, 255, {"arguments_do_not_match": 3})


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("hermes", {"conversations": [{"from": "gpt", "value": "<tool_call>{</tool_call>"}]}, "bad_tool_call"),
    ("hermes", {"conversations": [{"from": "gpt", "value": '<tool_call>{"name": "f"}</tool_call> x'}]},
     "text_behind_call"),
    ("hermes", {"conversations": [{"from": "system", "value": "<tools> [ </tools>"}]}, "bad_tool"),
    ("sharegpt", {"conversations": [{"from": "robot", "value": "x"}]}, "unknown_role"),
    ("sharegpt", {"conversations": []}, "no_messages"),
    ("sharegpt", {"conversations": ["x"]}, "bad_message"),
    ("chatml", {"text": "<|im_start|>user\nx"}, "no_messages"),
    ("xlam", {"query": "x", "tools": "[", "answers": "[]"}, "bad_tool_call"),
    ("xlam", {"query": 1, "tools": "[]", "answers": "[]"}, "content_not_text"),
    ("glaive", {"system": "SYSTEM: { x", "chat": "USER: x\n\n\nASSISTANT: y"}, "bad_tool"),
    ("glaive", {"system": "SYSTEM: x", "chat": "x"}, "no_messages"),
    ("glaive", {"system": "", "chat": "USER: x\n\n\nASSISTANT: <functioncall> {"}, "bad_tool_call"),
    ("bfcl", {"question": [[], []], "function": []}, "needs_execution"),
    ("alpaca", {"instruction": 1, "output": ""}, "content_not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "history": ["x"]}, "bad_message"),
    ("magicoder", {"problem": "x"}, "no_messages"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_bad_rows_have_a_name(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadConversation) as caught:
        FORMATS[name].read(row)
    assert caught.value.reason == reason


def call(name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": FUNCTION | changes}


@pytest.mark.parametrize(
    ("tools", "answer", "reason"),
    [
        ([tool()], call(city="Rome", days=2), None),
        ([], call("anything", x=1), None),
        ([tool()], call(city=1), "arguments_do_not_match"),
        ([tool()], call(days=1), "arguments_do_not_match"),
        ([tool()], call("other"), "unknown_function"),
        ([tool()], call("no name"), "bad_tool_call"),
        ([tool(), tool()], call(city="x"), "duplicate_tool"),
        ([tool(name="two words")], call(city="x"), "bad_tool"),
        ([tool(parameters={"type": "string"})], call(city="x"), "bad_tool"),
        ([tool(parameters={"type": "object", "properties": 1})], call(city="x"), "bad_tool"),
        ([{"type": "retrieval"}], call(city="x"), "bad_tool"),
        ([tool(parameters={"type": "object", "properties": {"city": {"$ref": "https://example.org/x"}}})],
         call(city="x"), "arguments_do_not_match"),
        ([tool(parameters={"type": "object", "properties": {"city": {"pattern": "("}}})], call(city="x"),
         "arguments_do_not_match"),
        ([tool(parameters={"type": "object", "$ref": "#"})], call(city="x"), "arguments_do_not_match"),
    ],
)  # fmt: skip
def test_functions_and_calls_are_held_to_the_schema(
    tools: list[dict[str, Any]], answer: dict[str, Any], reason: str | None
) -> None:
    conversation = Conversation.from_dict({"messages": [{"role": "user", "content": "x"}, answer], "tools": tools})
    if reason is None:
        check_functions(conversation)
        return
    with pytest.raises(BadConversation) as caught:
        check_functions(conversation)
    assert caught.value.reason == reason


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write


def test_the_command_counts_and_goes_on(rows_file: Callable[..., Path], tmp_path: Path) -> None:
    good = {"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    path = rows_file(
        good,
        good,
        good | {"id": "b"},
        "{\n",
        "[]\n",
        {"messages": []},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    )
    rows_file(good | {"id": "c", "category": "own"}, name="second.jsonl")
    out = tmp_path / "out"
    arguments = ["convert", str(path.parent), "--out", str(out), "--source", "here", "--category", "k"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "duplicate id" in done.output
    assert "3 conversations of 8 rows" in done.output
    lines = [Conversation.from_json(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(line.id, line.source, line.category) for line in lines] == [("a", "here", "k"), ("b", "here", "k")]
    assert json.loads((out / "second.jsonl").read_text())["category"] == "own"
    rejects = [json.loads(line) for line in (out / "rejects" / "rows.jsonl").read_text().splitlines()]
    assert [(row["row"], row["reason"]) for row in rejects] == [
        (2, "duplicate_id"), (4, "not_json"), (5, "not_an_object"), (6, "no_messages"), (7, "not_json"),
    ]  # fmt: skip
    stamp = (out / "rows.jsonl").stat().st_mtime_ns
    again = CliRunner().invoke(app, arguments)
    assert again.output.count(".jsonl: there already") == 2
    assert "3 conversations of 8 rows" in again.output
    (out / "second.jsonl").write_text("damaged")
    assert CliRunner().invoke(app, arguments).output.count(".jsonl: there already") == 1
    assert json.loads((out / "second.jsonl").read_text())["id"] == "c"
    assert (out / "rows.jsonl").stat().st_mtime_ns == stamp
    stopped = CliRunner().invoke(app, [*arguments, "--on-bad", "stop"])
    assert stopped.exit_code == 2
    assert "row 2: duplicate id" in stopped.output
    assert json.loads((out / "second.jsonl").read_text())["id"] == "c"


def test_there_and_back_by_the_command(rows_file: Callable[..., Path], tmp_path: Path) -> None:
    for name, rows in ROWS.items():
        path = rows_file(*rows, name=f"{name}.jsonl")
        convert_files([path], tmp_path / "mify", Options(), lambda _: None)
        back = Options("mify", name)
        convert_files([tmp_path / "mify" / f"{name}.jsonl"], tmp_path / "back", back, lambda _: None)
        assert [parsed(row) for row in read_rows(tmp_path / "back" / f"{name}.jsonl")] == [parsed(row) for row in rows]


def test_parquet_lists_and_mistakes(rows_file: Callable[..., Path], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = ROWS["alpaca"][:1] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    tally = convert_files([tmp_path / "a.parquet", tmp_path / "list.json"], tmp_path / "out", Options(), lambda _: None)
    assert tally.kept == 4
    with pytest.raises(MifyError, match="no known format"):
        convert_files([rows_file({"a": 1})], tmp_path / "x", Options(), lambda _: None)
    talk = [{"role": "user", "content": "a\n\nASSISTANT: b"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(BadConversation, match="something else"):
        write_row(Conversation.from_dict({"messages": talk}), "glaive")
    with pytest.raises(MifyError, match="is no format"):
        Options("word")
    with pytest.raises(MifyError, match=r"holds no \.jsonl"):
        convert_files([tmp_path / "nothing"], tmp_path / "x", Options(), lambda _: None)
    with pytest.raises(MifyError, match="two inputs"):
        convert_files([tmp_path / "list.json", tmp_path / "list.json"], tmp_path / "x", Options(), lambda _: None)


def test_ids_that_an_earlier_file_takes_are_found_when_only_that_one_changed(tmp_path: Path) -> None:
    def write(name: str, *ids: str) -> None:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        (tmp_path / name).write_text("\n".join(json.dumps({"id": one, "messages": turns}) for one in ids))

    def kept(name: str) -> list[str]:
        return [row["id"] for row in read_rows(tmp_path / "out" / name)]

    write("a.jsonl", "1")
    write("b.jsonl", "2", "3")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for ids in (("1",), ("1", "3")):
        write("a.jsonl", *ids)
        convert_files(files, tmp_path / "out", Options(source_format="mify"), lambda message: None)
    assert (kept("a.jsonl"), kept("b.jsonl")) == (["1", "3"], ["2"])


def test_a_list_behind_a_blank_line_and_a_broken_table(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('\n [{"id": "1"}]')
    assert list(read_rows(tmp_path / "list.json")) == [{"id": "1"}]
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(MifyError, match=r"half\.parquet is no whole Parquet file"):
        list(read_rows(tmp_path / "half.parquet"))
