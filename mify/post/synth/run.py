"""Runs a recipe, stage by stage. What is done stays done: killed at any moment, the same command continues.

A stage's key is a hash of its settings, of what it builds on and of the files that it reads; where key and files are as
they were, the stage is not run again. A stage whose settings or files have changed is named, and made again only with
`rebuild`: what was paid for stays in the ledger and is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import read_json, remove_leftovers, sha256_file, write_json
from mify.post.synth.account import Account, BudgetReachedError
from mify.post.synth.client import Client
from mify.post.synth.conversations import write_conversations
from mify.post.synth.ledger import Ledger
from mify.post.synth.prompts import Prompts, load_prompts
from mify.post.synth.recipe import Node, Recipe
from mify.post.synth.samples import Outcome, Rejected, Sample, StageFiles, digest, read_rejected, read_samples
from mify.post.synth.stage import Context, Progress, Upstream
from mify.typed_tree import to_plain

FORMAT, VERSION = "synth-report", 1
_STAGE_VERSION = 1  # raised where a stage of the same settings makes something else


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left: report.json's content, and why it ended before its end ("" where it did not)."""

    report: dict[str, Any]
    stopped: str = ""


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    rebuild: bool = False,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Runs what is not done yet, then writes conversations.jsonl (and safety.jsonl), report.json and report.html.

    Args:
        out: the folder of stages, ledger and results.
        rebuild: make stages again whose settings or inputs have changed.
        environment: where keys are looked for. progress: called with (stage, done, total).

    Raises:
        MifyError: a changed recipe without `rebuild`, an endpoint that refuses, a file that is not there.
    """
    folder = Path(out)
    stages = folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    remove_leftovers(stages)
    remove_leftovers(folder)
    prompts = load_prompts(Path(recipe.prompts) if recipe.prompts else None)
    with Ledger(folder / "requests.jsonl") as ledger:
        account = Account(recipe.budget, {name: item.price for name, item in recipe.endpoints.items()}, ledger)
        client = Client(recipe.endpoints, ledger, account, environment)
        runner = _Runner(recipe, stages, client, prompts, rebuild, progress or (lambda *_: None))
        stopped = ""
        try:
            for node in recipe.nodes:
                runner.run(node)
        except BudgetReachedError as reached:
            stopped = str(reached)
        report = _report(recipe, runner.done, ledger, account, stopped)
    if not stopped:
        samples = [sample for name in recipe.outputs for sample in read_samples(StageFiles(stages, name).kept)]
        report["conversations"] = write_conversations(folder, _distinct(samples)[0])
    write_json(folder / "report.json", report)
    from mify.post.synth.report_page import write_page

    write_page(folder / "report.html", report)
    return Result(report, stopped)


class _Runner:
    """Runs single stages, and remembers what they left."""

    def __init__(
        self, recipe: Recipe, folder: Path, client: Client, prompts: Prompts, rebuild: bool, progress: Progress
    ) -> None:
        self._recipe, self._folder, self._client, self._prompts = recipe, folder, client, prompts
        self._rebuild, self._progress = rebuild, progress
        self._nodes = {node.name: node for node in recipe.nodes}
        self.done: dict[str, dict[str, Any]] = {}

    def run(self, node: Node) -> None:
        """Runs a stage unless it is done; its inputs are."""
        files = StageFiles(self._folder, node.name)
        settings = self._settings(node)
        key = digest(settings)
        found = files.read()
        if found is not None and found["key"] == key and not found["unanswered"]:
            self.done[node.name] = found
            return
        # Samples that come in may be others because an earlier stage was asked to go on; that is no changed recipe.
        names = [] if found is None else _differences({**found["settings"], "inputs": settings["inputs"]}, settings)
        if names and not self._rebuild:
            raise MifyError(
                f"the stage {node.name} was made with another recipe ({', '.join(names)})",
                "--rebuild makes it again (answers that are there are not asked for again), or give another --out",
            )
        given = [sample for name in node.inputs for sample in read_samples(StageFiles(self._folder, name).kept)]
        samples, twice = _distinct(given)
        self._progress(node.name, 0, len(samples))
        outcome = node.stage.run(self._context(node), samples)
        kept, again = _distinct(outcome.kept) if node.stage.source else (list(outcome.kept), [])
        whole = Outcome(kept, [*twice, *outcome.rejected, *again], outcome.facts, outcome.unanswered)
        expected = len(given) if not node.stage.source else len(outcome.kept) + len(outcome.rejected)
        if len(whole.kept) + len(whole.rejected) != expected:
            raise AssertionError(
                f"{node.name} lost samples: {expected} came, {len(whole.kept)} + {len(whole.rejected)} left"
            )
        self.done[node.name] = files.write(key, settings, whole)

    def _settings(self, node: Node) -> dict[str, Any]:
        """All that the stage's samples depend on."""
        stage = node.stage
        asked = {name: self._recipe.endpoints[name] for name in stage.asks()}
        settings: dict[str, Any] = {
            "kind": stage.kind,
            "version": _STAGE_VERSION,
            "settings": to_plain(stage),
            "inputs": {name: self.done[name]["sha256"]["kept"] for name in node.inputs},
            "files": {Path(name).name: _sha256(name, node.name) for name in stage.files()},
            "identity": stage.identity(),
        }
        if stage.looks_back:
            settings["inputs"] |= {f"{one.name}, rejected": one.digest for one in self._upstream(node)}
        # A path may change as long as the file does not, and how many work at a time changes nothing.
        for name in ("documents", "path", "requests", "rubric", "workers"):
            settings["settings"].pop(name, None)
        if asked or stage.source:
            settings["seed"] = self._recipe.seed
        if asked:
            settings["models"] = {name: [item.model, item.structured] for name, item in asked.items()}
            settings["prompts"] = digest(self._prompts) if stage.prompted else ""
        return settings

    def _context(self, node: Node) -> Context:
        return Context(
            node.name, self._recipe.seed, self._client, self._prompts, self._folder, partial(self._upstream, node),
            self._progress,
        )  # fmt: skip

    def _upstream(self, node: Node) -> Sequence[Upstream]:
        found: dict[str, Upstream] = {}
        queue = list(node.inputs)
        while queue:
            name = queue.pop(0)
            if name in found:
                continue
            files = StageFiles(self._folder, name)
            found[name] = Upstream(
                name, self._nodes[name].stage.kind, self.done[name]["sha256"]["rejected"], _reader(files.kept),
                _rejected_reader(files.rejected),
            )  # fmt: skip
            queue += self._nodes[name].inputs
        return list(found.values())


def read_report(path: str | Path) -> dict[str, Any]:
    """A report.json, or that of a folder.

    Raises:
        MifyError: it is missing, or none of ours.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    value = read_json(file)
    if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (FORMAT, VERSION):
        raise MifyError(f"{file} is no {FORMAT} of version {VERSION}", "give one that mify synth wrote")
    return value


def _report(
    recipe: Recipe, done: Mapping[str, dict[str, Any]], ledger: Ledger, account: Account, stopped: str
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "seed": recipe.seed,
        "stopped": stopped,
        "stages": [
            {"name": node.name, "kind": node.stage.kind, "about": node.stage.about, "inputs": list(node.inputs)}
            | {name: done[node.name][name] for name in ("in", "kept", "rejected", "facts", "unanswered")}
            for node in recipe.nodes
            if node.name in done
        ],
        "outputs": list(recipe.outputs),
        "endpoints": {
            name: {"model": item.model, "cost": ledger.spent[name]} for name, item in recipe.endpoints.items()
        },
        "account": {
            "requests": ledger.totals["sent"],
            "tries": ledger.totals["tries"],
            "answered": ledger.totals["answered"],
            "failed for good": ledger.totals["failed"],
            "gave up": ledger.totals["gave up"],
            "interrupted": len(ledger.interrupted),
            "prompt_tokens": ledger.totals["prompt tokens"],
            "new_tokens": ledger.totals["new tokens"],
            "cost": sum(ledger.spent.values()),
            "possibly_billed": sum(worst for _, worst in ledger.interrupted.values()),
            "max_cost": recipe.budget.max_cost,
        },
    }


def _distinct(samples: Sequence[Sample]) -> tuple[list[Sample], list[Rejected]]:
    """The first sample of each id, and the others."""
    found: dict[str, Sample] = {}
    twice = []
    for sample in samples:
        if sample.id in found:
            twice.append(Rejected(sample, "an id that came before"))
        else:
            found[sample.id] = sample
    return list(found.values()), twice


def _reader(path: Path) -> Callable[[], list[Sample]]:
    return lambda: list(read_samples(path))


def _rejected_reader(path: Path) -> Callable[[], list[tuple[Sample, str]]]:
    return lambda: [(item.sample, item.reason) for item in read_rejected(path)]


def _sha256(path: str, stage: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise MifyError(
            f"the stage {stage} reads {path}, which cannot be read ({error.strerror})", "check the path"
        ) from None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], where: str = "") -> list[str]:
    """The names of what differs, as deep as they go."""
    names = []
    for key in sorted(there.keys() | here.keys()):
        one, other = there.get(key), here.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += _differences(one, other, f"{where}{key}.")
        elif one != other and not (one in ((), []) and other in ((), [])):
            names.append(f"{where}{key}")
    return names
