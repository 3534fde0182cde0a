"""The plots of scores and of steps: what is drawn, and what is said to those who cannot see it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from secateur.report.quantity import quantity
from secateur.report.record import AxisRecord, Step
from secateur.report.svg import COLOURS, figure, inline, page_style

Floats = NDArray[np.float64]

MOST_STEP_NAMES = 24
"""So many steps are named beside the plot; of more, evenly spaced ones."""

LOG_RANGE = 50
"""From this ratio of the largest to the smallest score on, their axis is logarithmic."""


def cut(axis: AxisRecord) -> float | None:
    """The score that parts the units that stay from those that go, or None where no score does.

    Example:
        >>> cut(AxisRecord("fc", 4, (2, 3), scores=(1.0, 2.0, 4.0, 9.0)))
        3.0
    """
    if axis.scores is None:
        return None
    scores, stays = np.array(axis.scores), _mask(axis)
    if stays.all() or not stays.any() or scores[~stays].max() > scores[stays].min():
        return None
    middle = float((scores[~stays].max() + scores[stays].min()) / 2)
    return middle if np.isfinite(middle) else None


def scores_plot(axis: AxisRecord, name: str) -> Markup:
    """A histogram of one axis' finite scores, those that stay on top of those that go."""
    scores, stays = np.array(axis.scores, dtype=np.float64), _mask(axis)
    finite = np.isfinite(scores)
    scores, stays = scores[finite], stays[finite]
    threshold = cut(axis)
    with page_style():
        drawing = figure(300, 170)
        plot = drawing.subplots()
        edges = _edges(plot, scores, threshold)
        below = np.histogram(scores[~stays], edges)[0]
        above = np.histogram(scores[stays], edges)[0]
        box: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "linewidth": 0.8}
        plot.bar(edges[:-1], below, facecolor=COLOURS["paper"], edgecolor=COLOURS["removed"], hatch="//////", **box)
        plot.bar(edges[:-1], above, bottom=below, facecolor=COLOURS["kept"], edgecolor=COLOURS["paper"], **box)
        if threshold is not None:
            plot.axvline(threshold, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
        plot.set_xlabel("score" + (" (log scale)" if plot.get_xscale() == "log" else ""))
        plot.set_ylabel("units")
        plot.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        cut_words = (
            f"The cut lies at {quantity(threshold)}." if threshold is not None else "No single score is the cut."
        )
        title = f"Histogram of the scores of {axis.name}: {len(axis.kept)} of {axis.size} units stay. {cut_words}"
        return inline(drawing, name, title)


def steps_plot(metric: str, unit: str, steps: Sequence[Step], name: str) -> Markup:
    """One metric through the steps, from top to bottom, each with its value."""
    values = np.array([step.metrics[metric] for step in steps], dtype=np.float64)
    rows = np.arange(len(steps))
    with page_style():
        drawing = figure(460, 62 + min(26 * len(steps), 26 * MOST_STEP_NAMES))
        plot = drawing.subplots()
        plot.axvline(values[0], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 2)))
        plot.plot(values, rows, color=COLOURS["kept"], marker="o", markersize=6)
        plot.plot(values[:1], rows[:1], "o", markersize=6, color=COLOURS["paper"], markeredgecolor=COLOURS["ink"])
        named = rows[:: -(-len(rows) // MOST_STEP_NAMES)]
        plot.set_yticks(named, [steps[row].name for row in named])
        for row in named:
            text = quantity(float(values[row]), unit)
            if np.isfinite(values[row]):
                plot.annotate(text, (values[row], row), (9, 0), textcoords="offset points", va="center", fontsize=11)
        plot.set_ylim(len(steps) - 0.5, -0.5)
        plot.margins(x=0.18)
        plot.spines["left"].set_visible(False)
        plot.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        plot.xaxis.set_major_locator(MaxNLocator(5))
        plot.set_xlabel(f"{metric} ({unit})" if unit else metric)
        listed = "; ".join(f"{step.name}: {quantity(float(v), unit)}" for step, v in zip(steps, values, strict=True))
        return inline(drawing, name, f"{metric} through the steps. {listed}.")


def _mask(axis: AxisRecord) -> NDArray[np.bool_]:
    stays = np.zeros(axis.size, dtype=bool)
    stays[list(axis.kept)] = True
    return stays


def _edges(plot: Axes, scores: Floats, threshold: float | None) -> Floats:
    """Bin edges over all scores, one of them on the cut, so that no bar is on both sides; sets a log axis where it helps."""
    if not scores.size:
        return np.array([0.0, 1.0])
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    logarithmic = low > 0 and high / low >= LOG_RANGE
    bins = int(np.clip(2 * np.sqrt(scores.size), 8, 28))
    if logarithmic:
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(numticks=4))
        plot.xaxis.set_minor_locator(NullLocator())
        plot.xaxis.set_minor_formatter(NullFormatter())
        edges = np.geomspace(low, high, bins + 1)
    else:
        plot.xaxis.set_major_locator(MaxNLocator(4))
        edges = np.linspace(low, high, bins + 1)
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    edges[0], edges[-1] = low, high
    if threshold is not None:
        inner = edges[1:-1]
        inner[np.argmin(np.abs(inner - threshold))] = threshold
    return np.unique(edges)
