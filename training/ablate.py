"""Paired ablations: one thing changes between runs, and the difference comes with an interval.

Runs of one seed share their weights' initial values, the order of documents and, by the nested FIM decisions, which of
them are permuted. What is compared is the code length of the *same* held-out documents, document by document, so that
what makes one document harder than another cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.files import read_json, write_json

from .config import TrainConfig, load_recipe
from .evaluate import HeldOut
from .parallel import World, open_world

RESAMPLES = 10_000
UNWATCHED = ("--evaluation.held_out=none",)  # arms are measured when they are done, all on the same documents
Say = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """One arm: a name, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Arms of which the first is what the others are compared with."""

    name: str
    question: str
    recipe: str
    variants: tuple[Variant, ...]


MIXTURES = {"78:12:10": (78.0, 12.0, 10.0), "92.7:4.9:2.4": (92.7, 4.9, 2.4), "code only": (100.0, 0.0, 0.0)}


def mix_study(tokens: Path, recipe: str = "ablate-mix") -> Study:
    """78:12:10 against 92.7:4.9:2.4 (arXiv 2512.23747) and against code alone."""
    variants = []
    for name, weights in MIXTURES.items():
        overrides = []
        for domain, weight in zip(("code", "text", "math"), weights, strict=True):
            if weight:
                overrides.append(f"--data.sources.{domain}.path={tokens / domain}")
                overrides.append(f"--data.sources.{domain}.weight={weight}")
            else:
                overrides.append(f"--data.sources.{domain}=none")  # also where the recipe has it
        variants.append(Variant(name, tuple(overrides)))
    return Study("mix", "Does the mixture of code, text and math change held-out code?", recipe, tuple(variants))


def fim_study(tokens: Path, recipe: str = "ablate-fim", rates: Sequence[float] = (0.0, 0.15, 0.25, 0.3)) -> Study:
    """Shares of permuted documents; each share's are among those of every larger one."""
    sources = mix_study(tokens).variants[0].overrides
    variants = tuple(Variant(f"{100 * rate:g}%", (*sources, f"--data.fim.rate={rate}")) for rate in rates)
    return Study("fim", "What does FIM cost left to right, and what does it give in the middle?", recipe, variants)


@dataclass(frozen=True)
class Difference:
    """A variant minus the baseline, in bits per byte: below zero, the variant is better."""

    metric: str
    variant: str
    baseline_value: float
    value: float
    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """A claim needs the interval to leave zero out, and every seed to agree."""
        if self.high < 0 and max(self.by_seed) < 0:
            return "better"
        if self.low > 0 and min(self.by_seed) > 0:
            return "worse"
        return "not told apart"


@dataclass
class Result:
    """What a study found."""

    study: Study
    seeds: tuple[int, ...]
    differences: list[Difference]
    exact_match: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        rows = [vars(difference) | {"verdict": difference.verdict} for difference in self.differences]
        return {
            "format": "mify-ablation",
            "version": 1,
            "study": self.study.name,
            "question": self.study.question,
            "baseline": self.study.variants[0].name,
            "seeds": list(self.seeds),
            "tokens_per_run": self.tokens,
            "differences": rows,
            "exact_match": self.exact_match,
            "conclusion": conclusion(self),
        }


def run_study(
    study: Study, held_out: HeldOut, out: Path, *, seeds: Sequence[int], overrides: Sequence[str], say: Say
) -> Result:
    """Trains every variant with every seed (what is trained already is not trained again), and compares.

    Raises:
        MifyError: no seed, or what training raises.
    """
    if not seeds:
        raise MifyError("an ablation needs at least one seed", "give --seeds 1 or more")
    measured: dict[str, list[dict[str, list[tuple[str, int, float]]]]] = {}
    exact: dict[str, list[float]] = {}
    tokens = 0
    with open_world(load_recipe(study.recipe, overrides).parallel) as world:  # one for all runs: torchrun gives one
        for seed in seeds:
            for variant in study.variants:
                name = f"{variant.name.replace(':', '-').replace('%', '').replace(' ', '-')}-seed-{seed}"
                given = [
                    *variant.overrides,
                    f"--seed={seed}",
                    f"--name={name}",
                    f"--folder={out}",
                    *UNWATCHED,
                    *overrides,
                ]
                config = load_recipe(study.recipe, given)
                tokens = config.steps * config.tokens_per_step
                found = measure(config, held_out, world, say)
                measured.setdefault(variant.name, []).append(found["bits"])
                if found["exact"] is not None:
                    exact.setdefault(variant.name, []).append(found["exact"])
    base, *others = study.variants
    differences = [
        compare(metric, other.name, measured[base.name], measured[other.name])
        for other in others
        for metric in measured[base.name][0]
    ]
    matches = {name: float(np.mean(values)) for name, values in exact.items()}
    result = Result(study, tuple(seeds), differences, matches, tokens)
    if world.is_main:
        write_json(out / "ablation.json", result.to_dict())
    return result


def measure(config: TrainConfig, held_out: HeldOut, world: World, say: Say) -> dict[str, Any]:
    """Trains one arm on all ranks and measures it on the first; both are kept in the run's folder and done once."""
    from .trainer import train

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record and record["loss"] is not None and (step % max(1, steps // 10) == 0):
            say(f"{config.name}: step {step}/{steps}, loss {record['loss']:.3f}")

    result = train(config, progress)
    found = _measured(config.run_folder / "held_out.json", result.checkpoint, held_out, world) if world.is_main else {}
    everywhere: dict[str, Any] = world.broadcast(found)
    return everywhere


def _measured(stored: Path, checkpoint: Path, held_out: HeldOut, world: World) -> dict[str, Any]:
    from mify.loading import load

    identity = {"checkpoint": read_json(checkpoint / "manifest.json"), "held_out": held_out.identity}
    if stored.is_file() and (known := read_json(stored))["identity"] == identity:
        done: dict[str, Any] = known["found"]
        return done
    model = load(checkpoint, device=world.device)
    bits: dict[str, Any] = held_out.document_bits(model)
    if middles := held_out.infilling_bits(model):
        bits["middle"] = middles
    exact = held_out.infilling_exact(model)
    found: dict[str, Any] = {"bits": bits, "exact": sum(exact.values()) / len(exact) if exact else None}
    write_json(stored, {"format": "mify-ablation-run", "version": 1, "identity": identity, "found": found})
    return found


def compare(
    metric: str, variant: str, base: list[dict[str, Any]], other: list[dict[str, Any]], *, seed: int = 0
) -> Difference:
    """The difference in bits per byte over the documents of `metric`, with a 95% interval.

    The interval is a percentile bootstrap that draws documents, and seeds, with replacement (Efron 1979): it covers
    both which documents were held out and which seed was drawn.

    Args:
        base, other: one entry a seed: {metric: (id, bytes, bits) of each document}, the same documents in each.
    """
    sizes = np.array([size for _, size, _ in base[0][metric]], dtype=np.float64)
    before = np.array([[bits for _, _, bits in run[metric]] for run in base])  # (seeds, documents)
    after = np.array([[bits for _, _, bits in run[metric]] for run in other])
    delta = after - before
    by_seed = delta.sum(axis=1) / sizes.sum()
    low, high = np.quantile(resampled(delta, sizes, seed), [0.025, 0.975])
    return Difference(
        metric,
        variant,
        float(before.sum() / sizes.sum() / len(before)),
        float(after.sum() / sizes.sum() / len(after)),
        float(by_seed.mean()),
        float(low),
        float(high),
        tuple(float(value) for value in by_seed),
    )


def resampled(delta: NDArray[np.float64], sizes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(RESAMPLES,) differences in bits per byte: documents and seeds drawn with replacement."""
    generator = np.random.Generator(np.random.PCG64(seed))
    seeds, documents = delta.shape
    weights = generator.multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES).astype(np.float64)
    per_seed = (weights @ delta.T) / (weights @ sizes)[:, None]  # (resamples, seeds)
    drawn = generator.integers(0, seeds, (RESAMPLES, seeds))
    return np.take_along_axis(per_seed, drawn, axis=1).mean(axis=1)


def conclusion(result: Result) -> str:
    """What may be said at this size, in words."""
    base = result.study.variants[0].name
    lines = [
        f"At {result.tokens:,} tokens a run and {len(result.seeds)} seed(s), against {base}:",
        *(
            f"{d.variant} on {d.metric}: {d.mean:+.4f} bits per byte [{d.low:+.4f}, {d.high:+.4f}], {d.verdict}."
            for d in result.differences
        ),
    ]
    if len(result.seeds) < 3:
        lines.append("With fewer than three seeds the interval knows little of the seed's own effect.")
    return "\n".join(lines)


def plot(result: Result, path: Path) -> None:
    """The differences with their intervals, one panel a metric, as PNG."""
    from .charts import forest

    panels: dict[str, list[tuple[str, float, float, float]]] = {}
    for d in result.differences:
        panels.setdefault(d.metric, []).append((d.variant, d.mean, d.low, d.high))
    base = result.study.variants[0].name
    forest(panels, f"bits per byte, less {base} (below zero is better)", path)
