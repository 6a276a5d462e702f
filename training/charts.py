"""Pictures: differences with intervals, curves of runs. matplotlib comes with the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import atomic_file

INK, BLUE, GREY = "#1a1a1a", "#2b6cb0", "#8a8f98"


def forest(panels: Mapping[str, Sequence[tuple[str, float, float, float]]], label: str, path: Path) -> None:
    """A panel each of (name, mean, low, high), with a line at zero."""
    pyplot = _pyplot()
    height = 0.7 + 0.35 * max(len(rows) for rows in panels.values())
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7, 0.6 + height * len(panels)), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        places = range(len(rows), 0, -1)
        for place, (_, mean, low, high) in zip(places, rows, strict=True):
            axis.plot([low, high], [place, place], color=BLUE, linewidth=2)
            axis.plot([mean], [place], "o", color=BLUE)
        axis.axvline(0, color=GREY, linewidth=1)
        axis.set_yticks(list(places), [name for name, *_ in rows])
        axis.set_ylim(0.4, len(rows) + 0.6)
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel(label)
    _save(figure, path)


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, path: Path) -> None:
    """Named lines of (x, y) on linear axes."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, (xs, ys) in lines.items():
        axis.plot(xs, ys, label=name, linewidth=1.5)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if len(lines) > 1:
        axis.legend(frameon=False)
    _save(figure, path)


def ladder(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    fitted: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
) -> None:
    """Measured losses and the fitted curve of each model size over tokens, tokens on a logarithmic axis."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for index, (name, (xs, ys)) in enumerate(points.items()):
        color = pyplot.get_cmap("viridis")(0.15 + 0.7 * index / max(1, len(points) - 1))
        axis.plot(xs, ys, "o", color=color, label=name)
        axis.plot(*fitted[name], color=color, linewidth=1.2)
    axis.set_xscale("log")
    axis.set_xlabel("training tokens")
    axis.set_ylabel("held-out bits per byte")
    axis.legend(frameon=False, title="parameters")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    _pyplot().close(figure)


def _pyplot() -> Any:
    if util.find_spec("matplotlib") is None:
        raise MifyError("pictures need matplotlib", "pip install 'mify[plot]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
