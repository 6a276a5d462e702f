"""What a recipe asks at most, before anything is spent: every sample is taken to pass every stage."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from mify.post.synth.account import Price
from mify.post.synth.generate import Evolve, Grid, Read, Seeded
from mify.post.synth.judging import Judge
from mify.post.synth.recipe import Node, Recipe
from mify.post.synth.safe_answers import SafeAnswers

# A prompt's tokens for an estimate: the templates of prompts.toml have 250 to 400 with a seed or a problem in them, a
# judge's has a whole sample.
_PROMPT_TOKENS = 400
_JUDGED_TOKENS = 1000


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """A row a stage: {"stage", "kind", "inputs", "samples", "requests", "tokens", "cost"}, each at most.

    Raises:
        MifyError: a file that a stage reads is missing.
    """
    rows: dict[str, dict[str, Any]] = {}
    for node in recipe.nodes:
        rows[node.name] = _row(recipe, node, sum(rows[name]["samples"] for name in node.inputs))
    return list(rows.values())


def _row(recipe: Recipe, node: Node, given: int) -> dict[str, Any]:
    stage = node.stage
    samples, requests, prompt = given, 0, _PROMPT_TOKENS
    if isinstance(stage, Seeded):
        samples = requests = stage.count
    elif isinstance(stage, Grid):
        sides = (stage.topics, stage.skills, stage.difficulties, stage.languages)
        samples = requests = prod(map(len, sides)) * stage.per_cell
    elif isinstance(stage, Evolve):
        requests = given
    elif isinstance(stage, Read):
        samples = _lines(stage.path)
    elif isinstance(stage, SafeAnswers):
        samples = _lines(stage.requests)
        requests = samples if stage.endpoint else 0
    elif isinstance(stage, Judge):
        requests, prompt = (given + stage.calibrate) * stage.attempts, _JUDGED_TOKENS
    tokens = requests * int(getattr(stage, "max_new_tokens", 0))
    prices = [recipe.endpoints[name].price for name in stage.asks()] or [Price()]
    return {
        "stage": node.name,
        "kind": stage.kind,
        "inputs": list(node.inputs),
        "samples": samples,
        "requests": requests * len(prices),
        "tokens": tokens * len(prices),
        "cost": sum(price.of(requests * prompt, tokens) for price in prices),
    }


def _lines(path: str) -> int:
    with open(Path(path), "rb") as file:
        return sum(1 for line in file if line.strip())
