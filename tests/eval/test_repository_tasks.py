"""Repository-level completion, and the order of infilling prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mify.config import model_config
from mify.curation.documents import Document
from mify.errors import MifyError
from mify.eval.completers import MifyCompleter, Prompt, infill_ids
from mify.eval.repository_tasks import cross_code_eval, edit_similarity, repository_lines
from mify.eval.runner import run_task
from mify.model import Model
from mify.special_tokens import FILE_SEP, REPO_NAME
from mify.tokenizer import Tokenizer, train_tokenizer

GEOMETRY = "def rectangle_area(width, height):\n    return width * height\n\n\ndef helper(x):\n    return x\n"
SHOP = """import os
from shop.geometry import rectangle_area


def price(width, height, rate):
    area = rectangle_area(width, height)
    return area * rate
"""


def documents() -> list[Document]:
    files = {"shop/geometry.py": GEOMETRY, "shop/price.py": SHOP, "shop/other.py": "def unrelated():\n    return 1\n"}
    return [
        *(Document.create(text, "code", "python", "MIT", "s", "shop", path) for path, text in files.items()),
        Document.create(SHOP, "code", "python", "MIT", "s", "alone", "price.py"),
    ]


def test_a_line_is_chosen_that_needs_another_file() -> None:
    task = repository_lines(documents())
    assert [item.fields["target"] for item in task.items] == ["area = rectangle_area(width, height)"]
    item = task.items[0]
    assert item.fields["before"].endswith("def price(width, height, rate):\n    ")
    assert task.parts is not None
    parts = task.parts(item)
    assert parts[0] == (REPO_NAME, "shop")
    # The file that defines what the line needs stands nearest to it.
    assert [text.split("\n")[0] for _, text in parts[1:]] == ["shop/other.py", "shop/geometry.py", "shop/price.py"]
    assert parts[-1] == (FILE_SEP, "shop/price.py\n")
    again = repository_lines(documents()[::-1])
    assert [item.id for item in again.items] == [item.id for item in task.items]
    assert again.source == task.source
    with pytest.raises(MifyError, match="no held-out repository"):
        repository_lines(documents()[:1])


def tokenizer() -> Tokenizer:
    return train_tokenizer([SHOP, GEOMETRY], 400)


def completer() -> MifyCompleter:
    made = tokenizer()
    config = model_config("mify-tiny", num_layers=1, hidden_size=64, ffn_size=64, vocab_size=made.vocab_size)
    model = Model(config)
    model.tokenizer = made
    return MifyCompleter(model, "m")


def test_separators_are_special_tokens_where_the_vocabulary_has_them(tmp_path: Path) -> None:
    task = repository_lines(documents())
    assert task.parts is not None
    made = completer()
    vocabulary = made._tokenizer
    item = task.items[0]
    prompt = Prompt(("x", 0), item.fields["before"], parts=task.parts(item))
    ids, _ = made._encode(prompt, 10_000, "psm")
    assert vocabulary.decode(ids) == (
        "<|repo_name|>shop<|file_sep|>shop/other.py\ndef unrelated():\n    return 1\n"
        f"<|file_sep|>shop/geometry.py\n{GEOMETRY}<|file_sep|>shop/price.py\n{item.fields['before']}"
    )
    assert [i for i in ids if i < 128] == [vocabulary.special[REPO_NAME], *[vocabulary.special[FILE_SEP]] * 3]
    assert prompt.whole.startswith("# shop\n# shop/other.py\ndef unrelated")
    result = run_task(task, made, tmp_path)
    assert set(result["scores"]) == {"exact match", "edit similarity"}
    assert 0 <= result["scores"]["edit similarity"]["value"] <= 1


def test_infilling_prompts_in_both_orders() -> None:
    made = completer()
    vocabulary = made._tokenizer
    prompt = Prompt(("x", 0), "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")
    psm, spm = (made._encode(prompt, 10_000, order)[0] for order in ("psm", "spm"))
    assert vocabulary.decode(psm) == (
        "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\nprint(add(1, 2))\n<|fim_middle|>"
    )
    assert vocabulary.decode(spm) == (
        "<|fim_prefix|><|fim_suffix|>\n\nprint(add(1, 2))\n<|fim_middle|>def add(a, b):\n    return "
    )
    assert infill_ids((1, 2, 3), [10, 11], [20], "spm") == [1, 2, 20, 3, 10, 11]
    short, cut = made._encode(prompt, 12, "spm")
    assert len(short) <= 12
    assert cut > 0


def test_edit_similarity() -> None:
    assert edit_similarity("", "") == 1.0
    assert edit_similarity("abc", "") == 0.0
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("same", "same") == 1.0


def test_cross_code_eval(tmp_path: Path) -> None:
    row = {
        "prompt": "import a\n\nx = a.", "groundtruth": "first(1)", "right_context": "",
        "metadata": {"task_id": "project/1", "repository": "r"},
        "crossfile_context": {"text": "# def first(n):\n#     return n\n"},
    }  # fmt: skip
    path = tmp_path / "line_completion_rg1_bm25.jsonl"
    path.write_text(json.dumps(row) + "\n")
    task = cross_code_eval(path)
    text, suffix = task.prompt(task.items[0])
    assert (text, suffix) == ("# def first(n):\n#     return n\nimport a\n\nx = a.", None)
    assert task.judge is not None
    right, near = task.judge([(task.items[0], "first(1)"), (task.items[0], "first(2)")])
    assert (right.passed, near.passed) == (True, False)
    assert near.figures["edit similarity"] == pytest.approx(7 / 8)
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(MifyError, match="'groundtruth' is missing"):
        cross_code_eval(path)
