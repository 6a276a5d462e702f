"""A scaling curve from a ladder of small runs: L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, approach 3).

Each size is trained once at a constant rate; from its checkpoints short decay branches are cut (WSD, arXiv 2404.06395),
which gives a loss at every budget for little more than the longest run. The fit is least squares on log L over a grid
of exponents; for given exponents it is linear in E, A and B, which may not be negative. Error bars: the fit is repeated
on residuals drawn with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.files import read_json, write_json

from .ablate import MIXTURES, UNWATCHED, Say
from .config import TrainConfig, load_recipe
from .evaluate import HeldOut
from .parallel import World, open_world

EXPONENTS = np.linspace(0.05, 1.2, 47)


@dataclass(frozen=True)
class Point:
    """One finished run: N non-embedding parameters plus the output matrix, D trained tokens, held-out bits per byte."""

    name: str
    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """L(N, D) = e + a / N^alpha + b / D^beta."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, parameters: float, tokens: float) -> float:
        return self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of least loss with 6 N D = `flops` (equation 4 there).

        Raises:
            MifyError: the fit found no gain from one of them, or no exponent, so there is no optimum inside.
        """
        if self.a <= 0 or self.b <= 0:
            raise MifyError("the curve gains nothing from size or from tokens", "run a wider ladder")
        if {self.alpha, self.beta} & {float(EXPONENTS[0]), float(EXPONENTS[-1])}:
            raise MifyError("the exponents lie at the end of what was tried, undetermined", "run a wider ladder")
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


@dataclass(frozen=True)
class Fit:
    """The curve, what it leaves unexplained, and the curves of the resamples."""

    curve: Curve
    points: tuple[Point, ...]
    residual: float  # root mean square of log L - log L(N, D)
    resampled: tuple[Curve, ...]

    def interval(self, value: Callable[[Curve], float]) -> tuple[float, float]:
        """The 95% interval of a function of the curve, over the resamples for which it exists."""
        values = []
        for curve in self.resampled:
            try:
                values.append(value(curve))
            except (MifyError, OverflowError, ZeroDivisionError):
                continue
        if not values:
            return math.nan, math.nan
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)


def fit(points: Sequence[Point], *, resamples: int = 200, seed: int = 0) -> Fit:
    """The curve through `points`.

    Raises:
        MifyError: fewer than five points, or only one size or one budget.
    """
    sizes, budgets = {p.parameters for p in points}, {p.tokens for p in points}
    if len(points) < 5 or len(sizes) < 2 or len(budgets) < 2:
        raise MifyError(
            f"{len(points)} runs of {len(sizes)} sizes and {len(budgets)} budgets do not fix five numbers",
            "give at least three sizes and two budgets",
        )
    n = np.array([p.parameters for p in points], dtype=np.float64)
    d = np.array([p.tokens for p in points], dtype=np.float64)
    loss = np.array([p.loss for p in points])
    curve = _least_squares(n, d, loss)
    predicted = np.array([curve(*pair) for pair in zip(n, d, strict=True)])
    residuals = np.log(loss) - np.log(predicted)
    generator = np.random.Generator(np.random.PCG64(seed))
    spread = math.sqrt(len(points) / max(1, len(points) - 5))  # five numbers were fitted: residuals are too small
    drawn = generator.integers(0, len(points), (resamples, len(points)))
    curves = tuple(_least_squares(n, d, predicted * np.exp(spread * residuals[row])) for row in drawn)
    return Fit(curve, tuple(points), float(np.sqrt(np.mean(residuals**2))), curves)


def _least_squares(n: NDArray[np.float64], d: NDArray[np.float64], loss: NDArray[np.float64]) -> Curve:
    """Minimizes the sum of ((L - L(N, D)) / L)^2, which is that of log L to first order, over the grid of exponents.

    For each pair of exponents no coefficient may be negative, exactly: every set of columns that may be in use is
    solved (by QR), and the best that is not negative is taken.
    """
    scale_n, scale_d = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
    alphas, betas = (grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))
    columns = np.stack(
        [
            np.ones((len(alphas), len(n))),
            (n / scale_n) ** -alphas[:, None],
            (d / scale_d) ** -betas[:, None],
        ],
        axis=2,
    )  # (grid, points, 3)
    columns /= loss[:, None]
    best, found = math.inf, Curve(0.0, 0.0, 0.0, 0.0, 0.0)
    for used in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        q, r = np.linalg.qr(columns[:, :, used])
        weights = np.linalg.solve(r, q.sum(axis=1)[:, :, None])[:, :, 0]  # the target is 1 at every point
        errors = ((columns[:, :, used] @ weights[:, :, None])[:, :, 0] - 1) ** 2
        total = np.where((weights >= 0).all(axis=1), errors.sum(axis=1), np.inf)
        index = int(total.argmin())
        if total[index] < best - 1e-15:
            best = float(total[index])
            e, a, b = _spread(weights[index], used)
            alpha, beta = float(alphas[index]), float(betas[index])
            found = Curve(e, a * scale_n**alpha, alpha, b * scale_d**beta, beta)
    return found


def _spread(values: NDArray[np.float64], places: Sequence[int]) -> tuple[float, float, float]:
    full = [0.0, 0.0, 0.0]
    for place, value in zip(places, values, strict=True):
        full[place] = float(value)
    return full[0], full[1], full[2]


@dataclass(frozen=True)
class Rung:
    """A model size of the ladder."""

    layers: int
    hidden: int
    ffn: int

    @property
    def overrides(self) -> tuple[str, ...]:
        return (
            f"--model.num_layers={self.layers}",
            f"--model.hidden_size={self.hidden}",
            f"--model.ffn_size={self.ffn}",
        )


def parse_rungs(text: str) -> tuple[Rung, ...]:
    """`12x768x2048,16x1024x2816`: layers x hidden x FFN; nothing is `LADDER`.

    Raises:
        MifyError: anything else.
    """
    if not text.strip():
        return LADDER
    rungs = []
    for part in text.split(","):
        numbers = part.strip().split("x")
        if len(numbers) != 3 or not all(number.isdigit() and int(number) for number in numbers):
            raise MifyError(f"{part.strip()!r} is no size of a ladder", "write layers x hidden x FFN: 12x768x2048")
        rungs.append(Rung(*(int(number) for number in numbers)))
    return tuple(rungs)


def parse_budgets(text: str) -> tuple[int, ...]:
    """`60,120,240`: steps; nothing is `BUDGETS`. Raises MifyError for anything else."""
    if not text.strip():
        return BUDGETS
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise MifyError(f"{text!r} names no steps", "write them with commas: 60,120,240")
    return tuple(int(part) for part in parts)


BUDGETS = (60, 120, 240)
LADDER = (Rung(2, 64, 192), Rung(3, 96, 256), Rung(4, 128, 384), Rung(4, 192, 512))


def run_ladder(
    tokens: Path,
    held_out: HeldOut,
    out: Path,
    *,
    rungs: Sequence[Rung] = LADDER,
    budgets: Sequence[int] = BUDGETS,
    recipe: str = "ablate-mix",
    overrides: Sequence[str] = (),
    seed: int = 1,
    say: Say,
) -> Fit:
    """Trains the ladder (what is trained already is not trained again), measures it and fits the curve.

    Args:
        budgets: stable steps after which a branch decays, over a third as many steps.
    """
    given = (*overrides, f"--seed={seed}")
    with open_world(load_recipe(recipe, overrides).parallel) as world:
        points = [
            _measure(branch, held_out, world, say)
            for rung in rungs
            for branch in _branches(rung, recipe, tokens, out, budgets, given, say)
        ]
        found = fit(points)
        if world.is_main:
            write_json(out / "scale.json", to_dict(found))
    return found


def _branches(
    rung: Rung, recipe: str, tokens: Path, out: Path, budgets: Sequence[int], overrides: Sequence[str], say: Say
) -> list[TrainConfig]:
    """The trunk of a size at a constant rate, trained; and the configurations of the decay branches cut from it."""
    from .trainer import train

    sources = []
    for domain, weight in zip(("code", "text", "math"), MIXTURES["78:12:10"], strict=True):
        sources += [f"--data.sources.{domain}.path={tokens / domain}", f"--data.sources.{domain}.weight={weight}"]
    name = f"{rung.layers}x{rung.hidden}"
    common = [*sources, *UNWATCHED, *overrides, *rung.overrides, f"--folder={out}"]
    trunk = load_recipe(
        recipe,
        [
            *common, f"--name={name}-trunk", f"--steps={max(budgets)}", "--schedule.kind=constant",
            "--schedule.decay_steps=none", f"--checkpoint.every_steps={math.gcd(*budgets)}",
            "--checkpoint.keep_last=99",
        ],
    )  # fmt: skip
    say(f"{name}: trunk of {trunk.steps} steps")
    train(trunk, lambda *_: None)
    branches = []
    for budget in budgets:
        start = trunk.run_folder / "checkpoints" / f"step-{budget:08d}"
        decay = max(1, budget // 3)
        branches.append(
            load_recipe(
                recipe,
                [
                    *common, f"--name={name}-{budget}", f"--steps={budget + decay}", f"--schedule.decay_steps={decay}",
                    f"--init.state={start}", "--checkpoint.keep_last=1",
                ],
            )
        )  # fmt: skip
    return branches


def _measure(config: TrainConfig, held_out: HeldOut, world: World, say: Say) -> Point:
    from mify.config import ModelConfig

    from .ablate import measure

    found = measure(config, held_out, world, say)["bits"]
    sizes = sum(size for rows in found.values() for _, size, _ in rows)
    bits = sum(value for rows in found.values() for _, _, value in rows)
    newest = config.run_folder / (config.run_folder / "latest").read_text(encoding="utf-8").strip()
    shape = ModelConfig.from_dict(read_json(newest / "model.json"))
    parameters = shape.num_non_embedding_parameters() + shape.vocab_size * shape.hidden_size
    say(f"{config.name}: {bits / sizes:.4f} bits per byte")
    return Point(config.name, parameters, config.steps * config.tokens_per_step, bits / sizes)


def to_dict(found: Fit) -> dict[str, Any]:
    """The curve with its error bars, as JSON."""
    names = ("e", "a", "alpha", "b", "beta")
    bars = {name: found.interval(lambda curve, name=name: float(getattr(curve, name))) for name in names}  # type: ignore[misc]
    return {
        "format": "mify-scaling-curve",
        "version": 2,
        "law": "bits per byte = e + a / N^alpha + b / D^beta",
        "curve": vars(found.curve),
        "interval_95": bars,
        "residual_rms_log": found.residual,
        "conclusion": conclusion(found),
        "points": [vars(point) for point in found.points],
        "resampled": [[getattr(curve, name) for name in names] for curve in found.resampled],
    }


def read_fit(path: Path) -> Fit:
    """The curve that `mify ablate scale` left in `path` (scale.json).

    Raises:
        MifyError: no such file, or no scaling curve of this version.
    """
    values = read_json(path)
    if not isinstance(values, dict) or (values.get("format"), values.get("version")) != ("mify-scaling-curve", 2):
        raise MifyError(f"{path} is no mify-scaling-curve of version 2", "make one: mify ablate scale")
    return Fit(
        Curve(**values["curve"]),
        tuple(Point(**point) for point in values["points"]),
        values["residual_rms_log"],
        tuple(Curve(*numbers) for numbers in values["resampled"]),
    )


@dataclass(frozen=True)
class Forecast:
    """What a curve says of a run of N parameters on D tokens, and of its compute spent best; 95% intervals."""

    parameters: int
    tokens: int
    bits_per_byte: float
    interval: tuple[float, float]
    optimum: tuple[float, float] | None  # (N, D) of least loss with 6 N D the same; None where the curve has none
    optimum_interval: tuple[float, float]  # of N
    optimum_bits_per_byte: float
    extrapolation: float  # this compute over that of the ladder's largest run


def forecast(found: Fit, parameters: int, tokens: int) -> Forecast:
    """Args: parameters: as `Point` counts them. tokens: of training, at least 1."""
    flops = 6.0 * parameters * tokens
    try:
        optimum: tuple[float, float] | None = found.curve.optimum(flops)
    except MifyError:
        optimum = None
    return Forecast(
        parameters,
        tokens,
        found.curve(parameters, tokens),
        found.interval(lambda curve: curve(parameters, tokens)),
        optimum,
        found.interval(lambda curve: curve.optimum(flops)[0]) if optimum else (math.nan, math.nan),
        found.curve(*optimum) if optimum else math.nan,
        flops / max(6.0 * point.parameters * point.tokens for point in found.points),
    )


def conclusion(found: Fit) -> str:
    """What the curve says of ten times the ladder's largest compute, or why it says nothing."""
    flops = 10 * max(6.0 * point.parameters * point.tokens for point in found.points)
    try:
        parameters, tokens = found.curve.optimum(flops)
    except MifyError as error:
        return f"No optimum: {error.problem} in this ladder; {error.remedy}."
    low, high = found.interval(lambda curve: curve.optimum(flops)[0])
    known = sum(curve.a > 0 and curve.b > 0 for curve in found.resampled) / len(found.resampled)
    return (
        f"At {flops:.3g} FLOPs, ten times the largest run: {parameters:,.0f} parameters [{low:,.0f}, {high:,.0f}] "
        f"and {tokens:,.0f} tokens, {tokens / parameters:.1f} a parameter; "
        f"{known:.0%} of the resampled curves have an optimum."
    )


def plot(found: Fit, path: Path) -> None:
    """Measured points and the fitted curve of each size, as PNG."""
    from .charts import ladder

    points: dict[str, tuple[list[float], list[float]]] = {}
    fitted: dict[str, tuple[list[float], list[float]]] = {}
    for point in sorted(found.points, key=lambda p: (p.parameters, p.tokens)):
        xs, ys = points.setdefault(f"{point.parameters:,}", ([], []))
        xs.append(point.tokens)
        ys.append(point.loss)
    low, high = min(p.tokens for p in found.points), max(p.tokens for p in found.points)
    grid = np.geomspace(low, high, 50).tolist()
    for name in points:
        size = float(name.replace(",", ""))
        fitted[name] = (grid, [found.curve(size, budget) for budget in grid])
    ladder(points, fitted, path)
