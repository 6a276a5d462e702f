"""A recipe: endpoints, a budget, and a graph of stages. A TOML file, one table a stage, in the order of the work.

    [stages.seeded]
    kind = "seeded"
    …
    [stages.format]
    kind = "format"
    inputs = ["seeded"]      # without it, the stage before

What no stage takes is what the run gives.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.post.synth.account import Budget
from mify.post.synth.client import EndpointConfig, check_endpoints, endpoint_names
from mify.post.synth.code_filters import SecureCode, Syntax
from mify.post.synth.duplicates import Duplicates
from mify.post.synth.execution import Execution
from mify.post.synth.form import Format
from mify.post.synth.generate import Evolve, Grid, Read, Seeded
from mify.post.synth.judging import Judge
from mify.post.synth.safe_answers import SafeAnswers
from mify.post.synth.stage import Stage
from mify.post.synth.text_filters import Decontamination, PersonalData, Toxicity
from mify.typed_tree import build

KINDS: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        *(Seeded, Grid, Evolve, SafeAnswers, Read),
        *(Format, Syntax, Execution, Duplicates, Decontamination, Judge),
        *(PersonalData, Toxicity, SecureCode),
    )
}
EXAMPLE = Path(__file__).with_name("recipe.toml")


@dataclass(frozen=True)
class _Head:
    """What stands in a recipe beside its stages."""

    endpoints: dict[str, EndpointConfig] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    prompts: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A stage in the graph: its name, what it takes, what it does."""

    name: str
    inputs: tuple[str, ...]
    stage: Stage


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `mify synth` runs.

    Args:
        nodes: in an order in which each comes behind what it takes.
        endpoints: by name. seed: of all draws. prompts: a TOML file, "" for the package's.
    """

    nodes: tuple[Node, ...]
    endpoints: dict[str, EndpointConfig]
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    prompts: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The stages that no other takes."""
        taken = {name for node in self.nodes for name in node.inputs}
        return tuple(node.name for node in self.nodes if node.name not in taken)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe. Paths in it count from its folder.

    Raises:
        MifyError: it cannot be read, or is none.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MifyError(f"{file} does not exist", "mify synth --example prints a recipe to begin with") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MifyError(f"{file} cannot be read as TOML ({error})", "mify synth --example prints a recipe") from None
    return recipe_of(values, file.parent)


def recipe_of(values: Mapping[str, Any], folder: Path = Path()) -> Recipe:
    """A recipe from nested values.

    Raises:
        MifyError: an unknown key, kind, stage or endpoint (with the nearest one), a circle, or a value that cannot be.
    """
    head = build(_Head, {key: value for key, value in values.items() if key != "stages"})
    check_endpoints(head.endpoints)
    tables = values.get("stages")
    if not isinstance(tables, Mapping) or not tables:
        raise MifyError("the recipe has no stages", "add a table [stages.NAME] with its kind")
    nodes: dict[str, Node] = {}
    before = ""
    for name, table in tables.items():
        nodes[name] = _node(name, table, before, folder)
        endpoint_names(head.endpoints, nodes[name].stage.asks(), f"stages.{name}")
        before = name
    for node in nodes.values():
        for wanted in node.inputs:
            if wanted not in nodes:
                raise MifyError(f"stages.{node.name} takes {wanted!r}, which is no stage", _near(wanted, nodes))
    prompts = str(folder / head.prompts) if head.prompts else ""
    return Recipe(_in_order(nodes), head.endpoints, head.budget, head.seed, prompts)


def kinds_in_words() -> str:
    """Each kind with what it does, and its keys with their defaults."""
    lines = []
    for kind, stage in KINDS.items():
        lines += [f"{kind}: {stage.about}{'' if stage.source else ' (takes samples)'}"]
        lines += [f"    {item.name} = {_default(item)}" for item in fields(stage)]
    return "\n".join(lines)


def _default(item: Field[Any]) -> str:
    value = list(item.default) if isinstance(item.default, tuple) else item.default
    return '"none"' if value is None else json.dumps(value)


def _node(name: str, table: Any, before: str, folder: Path) -> Node:
    where = f"stages.{name}"
    if not isinstance(table, Mapping):
        raise MifyError(f"{where} is no table", f"write [{where}]")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise MifyError(f"{where}: a stage's name is the name of its files", "use letters, digits, - and _")
    values = dict(table)
    kind, inputs = values.pop("kind", None), values.pop("inputs", None)
    if kind not in KINDS:
        raise MifyError(f"{where}.kind = {kind!r} is not known", _near(str(kind), KINDS))
    for key in ("documents", "path", "rubric", "requests", "benchmarks"):
        values |= {key: _from(folder, values[key])} if key in values else {}
    stage = build(KINDS[kind], values, where)
    stage.check(where)
    if stage.source and inputs:
        raise MifyError(f"{where} makes samples and takes none", "leave inputs out")
    if not stage.source and inputs is None:
        if not before:
            raise MifyError(f"{where} takes samples, and there is no stage before it", "begin with one that makes some")
        inputs = [before]
    if inputs is not None and (not isinstance(inputs, list) or not inputs or len(set(inputs)) < len(inputs)):
        raise MifyError(f"{where}.inputs = {inputs!r} is no list of stages, each once", 'write inputs = ["seeded"]')
    return Node(name, tuple(inputs or ()), stage)


def _from(folder: Path, value: Any) -> Any:
    """A path of the recipe; a name such as "humaneval" stays."""
    if isinstance(value, list):
        return [_from(folder, item) for item in value]
    if not isinstance(value, str) or not value or ("/" not in value and "." not in value):
        return value
    return str(folder / value)


def _in_order(nodes: Mapping[str, Node]) -> tuple[Node, ...]:
    ordered: list[Node] = []
    left = dict(nodes)
    while left:
        ready = [node for node in left.values() if not set(node.inputs) & left.keys()]
        if not ready:
            raise MifyError(
                f"the stages {', '.join(left)} take one another in a circle", "let one take another's input"
            )
        for node in ready:
            del left[node.name]
        ordered += ready
    return tuple(ordered)


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
