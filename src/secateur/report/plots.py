"""The plots of scores and of steps: what is drawn, and what is said to those who cannot see it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from secateur.report.quantity import quantity
from secateur.report.record import AxisRecord, Step
from secateur.report.svg import COLOURS, figure, inline, page_style

Floats = NDArray[np.float64]

MOST_STEP_NAMES = 24
"""So many steps are named beside the plot; of more, evenly spaced ones."""

LONGEST_NAME = 26
"""Longer names are cut in a plot; the table beside it has them whole."""

ENDLESS = 1e100
"""Scores of this size or more, and of its inverse or less, are not drawn."""

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


def drawable(axis: AxisRecord) -> NDArray[np.bool_]:
    """Of which units the score has a place in a histogram: not those that are infinite, not a number, or near enough."""
    sizes = np.abs(np.array(axis.scores, dtype=np.float64))
    inside: NDArray[np.bool_] = (sizes == 0) | ((sizes > 1 / ENDLESS) & (sizes < ENDLESS))
    return inside


def scores_plot(axis: AxisRecord, name: str) -> Markup:
    """A histogram of one axis' scores, those that stay on top of those that go."""
    inside = drawable(axis)
    scores, stays = np.array(axis.scores, dtype=np.float64)[inside], _mask(axis)[inside]
    threshold = cut(axis)
    with page_style():
        drawing = figure(300, 170)
        plot = drawing.subplots()
        edges = _edges(plot, scores, threshold)
        below, above = (np.histogram(scores[group], edges)[0] for group in (~stays, stays))
        _hatched_bars(plot, edges, below)
        some = above > 0
        bars = plot.bar(edges[:-1][some], above[some], np.diff(edges)[some], below[some], align="edge")
        for bar in bars:
            bar.set(facecolor=COLOURS["kept"], edgecolor=COLOURS["paper"], linewidth=0.8)
        if threshold is not None:
            plot.axvline(threshold, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
        plot.set_xlabel("score" + (" (log scale)" if plot.get_xscale() == "log" else ""))
        plot.set_ylabel("units")
        plot.set_ylim(0, 1.08 * max(int((below + above).max()), 1))
        plot.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        words = f"Histogram of the scores of {axis.name}: {len(axis.kept)} of {axis.size} units stay."
        return inline(drawing, name, words if threshold is None else f"{words} The cut lies at {quantity(threshold)}.")


def steps_plot(metric: str, unit: str, steps: Sequence[Step], name: str) -> Markup:
    """One metric through the steps, from top to bottom, each with its value."""
    measured = np.array([step.metrics[metric] for step in steps], dtype=np.float64)
    values = np.where(np.isfinite(measured), measured, np.nan)
    rows = np.arange(len(steps))
    with page_style():
        drawing = figure(400, 62 + min(26 * len(steps), 26 * MOST_STEP_NAMES))
        plot = drawing.subplots()
        plot.axvline(values[0], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 2)))
        plot.plot(values, rows, color=COLOURS["kept"], marker="o", markersize=6)
        plot.plot(values[:1], rows[:1], "o", markersize=6, color=COLOURS["paper"], markeredgecolor=COLOURS["ink"])
        named = rows[:: -(-len(rows) // MOST_STEP_NAMES)]
        plot.set_yticks(named, [_short(steps[row].name) for row in named])
        numbers = plot.secondary_yaxis("right")
        numbers.set_yticks(named, [_short(quantity(float(measured[row]), unit)) for row in named])
        for side, place in ((plot, "left"), (numbers, "right")):
            side.spines[place].set_visible(False)
            side.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        plot.set_ylim(len(steps) - 0.5, -0.5)
        plot.margins(x=0.06)
        plot.xaxis.set_major_locator(MaxNLocator(4))
        plot.set_xlabel(_short(f"{metric} ({unit})" if unit else metric))
        listed = "; ".join(f"{step.name}: {quantity(float(v), unit)}" for step, v in zip(steps, measured, strict=True))
        return inline(drawing, name, f"{metric} through the steps. {listed}.")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _mask(axis: AxisRecord) -> NDArray[np.bool_]:
    stays = np.zeros(axis.size, dtype=bool)
    stays[list(axis.kept)] = True
    return stays


def _hatched_bars(plot: Axes, edges: Floats, heights: NDArray[np.int64]) -> None:
    """Bars hatched with lines of their own: printed, the patterns that SVG has for this come out as a grey of dots."""
    bars = [
        Path([(a, 0), (a, height), (b, height), (b, 0), (a, 0)], closed=True)
        for (a, b), height in zip(pairwise(edges), heights, strict=True)
        if height
    ]
    if not bars:
        return
    outline = Path.make_compound_path(*bars)
    slope = 0.45  # of the axes' width for all of their height: about 45 degrees in the shape that they have here
    starts = np.arange(-slope, 1, 0.02)
    ends = np.stack([np.stack([starts, starts * 0], 1), np.stack([starts + slope, starts * 0 + 1], 1)], 1)
    lines = Path(ends.reshape(-1, 2), np.tile([Path.MOVETO, Path.LINETO], len(starts)))
    hatching = PathPatch(lines, color=COLOURS["removed"], linewidth=1, transform=plot.transAxes)
    plot.add_patch(hatching)
    hatching.set_clip_path(outline, plot.transData)
    plot.add_patch(PathPatch(outline, facecolor="none", edgecolor=COLOURS["removed"], linewidth=0.9))


def _edges(plot: Axes, scores: Floats, threshold: float | None) -> Floats:
    """Edges of bins of one width over all scores, on a logarithmic axis where that helps.

    One edge lies on the cut, so that no bar stands on both sides of it.
    """
    if not scores.size or scores.min() == scores.max():
        middle = float(scores[0]) if scores.size else 0.0
        return np.array([middle - 0.5, middle + 0.5])
    logarithmic = scores.min() > 0 and scores.max() >= LOG_RANGE * scores.min()
    if logarithmic:
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(numticks=4))
        plot.xaxis.set_minor_locator(NullLocator())
        scores, threshold = np.log(scores), None if threshold is None else np.log(threshold)
    else:
        plot.xaxis.set_major_locator(MaxNLocator(4))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = scores.min(), scores.max()
    width = (high - low) / np.clip(2 * np.sqrt(scores.size), 8, 28).round()
    origin = low if threshold is None else threshold
    # A hair beyond the outermost scores, or rounding would leave them out.
    first, last = np.floor((low - origin) / width - 1e-9), np.ceil((high - origin) / width + 1e-9)
    edges: Floats = origin + width * np.arange(first, last + 1)
    return np.exp(edges) if logarithmic else edges
