"""Recipes: what is wrong with one is named, with the nearest right thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.post.synth.plan import plan
from mify.post.synth.prompts import filled, load_prompts
from mify.post.synth.recipe import EXAMPLE, KINDS, load_recipe, recipe_of
from mify.typed_tree import merge

GRID = {"kind": "grid", "topics": ["a"], "skills": ["b"]}
GOOD: dict[str, Any] = {
    "endpoints": {"teacher": {"url": "http://127.0.0.1:1/v1", "model": "m", "price": {"input": 1, "output": 2}}},
    "stages": {"grid": GRID, "format": {"kind": "format"}},
}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"stages": {"grid": {"kind": "gird"}}}, "did you mean 'grid'"),
        ({"stages": {"format": {"inputs": ["gird"]}}}, "which is no stage"),
        ({"stages": {"format": {"inputs": ["format"]}}}, "in a circle"),
        ({"stages": {"format": {"inputs": []}}}, "no list of stages"),
        ({"stages": {"format": {"inputs": ["grid", "grid"]}}}, "no list of stages"),
        ({"stages": {"grid": {"inputs": ["format"]}}}, "makes samples and takes none"),
        (
            {"stages": {"grid": {"topic": ["a"]}}},
            r"unknown key stages.grid.topic\n  -> did you mean stages.grid.topics",
        ),
        ({"stages": {"grid": {"topics": ["a", "a"]}}}, "names something twice"),
        ({"stages": {"grid": {"endpoint": "pupil"}}}, "asks the endpoint 'pupil'"),
        ({"stages": {"grid": {"top_p": 0.0}}}, "cannot be sampled"),
        ({"stages": {"a b": GRID}}, "name of its files"),
        ({"stages": {"../x": GRID}}, "name of its files"),
        ({"stages": {"judge": {"kind": "judge"}}}, "endpoints is empty"),
        ({"stages": {"judge": {"kind": "judge", "endpoints": ["teacher", "teacher"]}}}, "names a judge twice"),
        ({"stages": {"d": {"kind": "duplicates", "similarity": 1.5}}}, "no share|out of range"),
        ({"stages": {"p": {"kind": "personal-data", "kinds": ["phone"]}}}, "'phone' is not known"),
        ({"stages": {"s": {"kind": "seeded"}}}, "documents is missing"),
        ({"stages": {"s": {"kind": "safe-answers", "requests": "x", "answers": "endpoint"}}}, "with endpoint = ''"),
        ({"stages": {"s": {"kind": "secure-code", "allow": ["78"]}}}, "is no weakness"),
        ({"endpoints": {"teacher": {"parallel": 0}}}, "teacher.parallel = 0"),
        ({"endpoints": {"teacher": {"structured": "yaml"}}}, "is not known"),
        ({"endpoints": {"teacher": {"price": {"input": -1}}}}, "price is below 0"),
        ({"budget": {"max_coast": 3}}, "did you mean budget.max_cost"),
        ({"sead": 1}, "unknown key sead"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(MifyError, match=problem):
        recipe_of(merge(GOOD, changes))


def test_no_stages_no_first_input_no_file(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="has no stages"):
        recipe_of({"seed": 1})
    with pytest.raises(MifyError, match="no stage before it"):
        recipe_of({"stages": {"format": {"kind": "format"}}})
    with pytest.raises(MifyError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("stages = [")
    with pytest.raises(MifyError, match="cannot be read as TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_the_order_is_that_of_what_stages_take() -> None:
    values = {**GOOD, "stages": {"last": {"kind": "format", "inputs": ["b", "a"]}, "b": GRID, "a": GRID}}
    recipe = recipe_of(values)
    assert [node.name for node in recipe.nodes] == ["b", "a", "last"]
    assert recipe.outputs == ("last",)


def test_the_example_is_a_recipe_and_uses_most_kinds(tmp_path: Path) -> None:
    recipe = load_recipe(EXAMPLE)
    used = {node.stage.kind for node in recipe.nodes}
    assert used == KINDS.keys() - {"read", "safe-answers"}
    assert recipe.outputs == ("judge",)
    rows = {row["stage"]: row for row in plan(recipe)}
    assert (rows["seeded"]["requests"], rows["grid"]["requests"]) == (1000, 120)
    assert rows["evolved"]["requests"] == 1120
    assert rows["judge"]["requests"] == (2240 + 200) * 2
    seeded = rows["seeded"]
    assert seeded["cost"] == pytest.approx(1000 * (400 * 0.15 + 2048 * 0.6) / 1e6)
    assert str(recipe.nodes[0].stage.files()[0]) == str(EXAMPLE.parent / "corpus/documents.parquet")


def test_prompts_can_be_replaced_and_are_checked(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("system = 'Be brief about {{ language }}.'")
    prompts = load_prompts(own)
    assert filled(prompts, "system", language="ruby") == "Be brief about ruby."
    with pytest.raises(MifyError, match="cannot be filled: 'language' is undefined"):
        filled(prompts, "system")
    own.write_text("sistem = 'x'")
    with pytest.raises(MifyError, match="did you mean system"):
        load_prompts(own)
    own.write_text("deepen = 'x'")
    with pytest.raises(MifyError, match="deepen is no dict"):
        load_prompts(own)
    hostile = filled(
        load_prompts(), "seeded", seed="{{ 7 * 7 }} {% raw %}", language="python", tests=False, min_tests=0
    )
    assert "{{ 7 * 7 }} {% raw %}" in hostile  # a seed is text, not a template
