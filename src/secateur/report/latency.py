"""The plots of measured times: every sample in its order, and how the samples are distributed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from secateur.report.comparison import LatencyRecord, Times
from secateur.report.quantity import quantity
from secateur.report.svg import COLOURS, figure, inline, page_style

MOST_DOTS = 300
"""So many samples of each network are drawn as dots; of more, evenly spaced ones."""

MOST_STAIRS = 200
"""So many stairs a distribution is drawn with; with more samples, at evenly spaced shares of them."""

SIZE = (400, 250)


@dataclass(frozen=True, slots=True)
class _Network:
    """How one of the two networks is drawn: apart by colour, by line and by marker."""

    name: str
    samples: NDArray[np.float64]
    times: Times
    colour: str
    line: Any
    marker: dict[str, Any]


def order_plot(latency: LatencyRecord, name: str) -> Markup:
    """Every sample in the order of measurement: was the machine steady?"""
    with page_style():
        drawing = figure(*SIZE)
        plot = drawing.subplots()
        for network in _networks(latency):
            order = np.arange(len(network.samples))[:: _stride(len(network.samples))]
            plot.plot(order + 1, network.samples[order], linestyle="none", alpha=0.8, **network.marker)
            plot.axhline(network.times.median, color=network.colour, linewidth=1.3, linestyle=network.line)
            plot.annotate(
                network.name, (1, network.times.median), (6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", color=network.colour, annotation_clip=False,
            )  # fmt: skip
        plot.set_ylim(*_limits(latency))
        plot.yaxis.set_major_locator(MaxNLocator(5))
        plot.set_xlabel("order of measurement")
        plot.set_ylabel("ms")
        return inline(drawing, name, f"{latency.name}: every time in the order of measurement. {_words(latency)}")


def distribution_plot(latency: LatencyRecord, name: str) -> Markup:
    """For each time the share of samples that took no longer, with medians and 99th percentiles marked."""
    with page_style():
        drawing = figure(*SIZE)
        plot = drawing.subplots()
        for network in _networks(latency):
            shares = np.linspace(0, 1, min(len(network.samples), MOST_STAIRS) + 1)
            at = np.quantile(network.samples, shares, method="inverted_cdf")
            plot.plot(at, shares, drawstyle="steps-post", color=network.colour, linestyle=network.line)
            _mark(plot, network)
        plot.set_xlim(*_limits(latency))
        plot.set_ylim(0, 1.04)
        plot.xaxis.set_major_locator(MaxNLocator(5))
        plot.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        plot.set_xlabel("ms")
        plot.set_ylabel("runs that took no longer")
        return inline(drawing, name, f"{latency.name}: share of runs by time. {_words(latency)}")


def outside(latency: LatencyRecord) -> int:
    """How many samples are too slow to lie within the plots."""
    ceiling = _limits(latency)[1]
    return sum(sample > ceiling for sample in (*latency.dense, *latency.pruned))


def undrawn(latency: LatencyRecord) -> bool:
    """Whether there are more samples than dots."""
    return max(_stride(len(latency.dense)), _stride(len(latency.pruned))) > 1


def _networks(latency: LatencyRecord) -> Iterator[_Network]:
    hollow = {"marker": "o", "markersize": 4, "color": COLOURS["muted"], "markerfacecolor": "none"}
    filled = {"marker": "D", "markersize": 3.2, "color": COLOURS["kept"], "markeredgewidth": 0}
    yield _Network("dense", np.array(latency.dense), Times.of(latency.dense), COLOURS["muted"], (0, (4, 2)), hollow)
    yield _Network("pruned", np.array(latency.pruned), Times.of(latency.pruned), COLOURS["kept"], "solid", filled)


def _mark(plot: Axes, network: _Network) -> None:
    """Marks on the curve, with a word beside the median, where the two curves lie apart."""
    style: dict[str, Any] = {
        "color": network.colour,
        "markeredgecolor": COLOURS["paper"],
        "linestyle": "none",
        "clip_on": False,
    }
    plot.plot([network.times.median], [0.5], marker="o", markersize=7, **style)
    plot.plot([network.times.p99], [0.99], marker="^", markersize=8, **style)
    plot.annotate(
        f"{network.name}\n{quantity(network.times.median, 'ms')}",
        (network.times.median, 0.5), (9, -3), textcoords="offset points", va="top", color=network.colour,
    )  # fmt: skip


def _limits(latency: LatencyRecord) -> tuple[float, float]:
    """The range of times that is drawn: everything, but for stragglers far beyond the 99th percentile."""
    everything = np.array([*latency.dense, *latency.pruned])
    tail = max(Times.of(latency.dense).p99, Times.of(latency.pruned).p99)
    low, high = float(everything.min()), float(everything[everything <= 1.25 * tail].max())
    margin = 0.06 * (high - low) or 0.1 * high or 1.0
    return low - margin, high + margin


def _stride(samples: int) -> int:
    return -(-samples // MOST_DOTS)


def _words(latency: LatencyRecord) -> str:
    return " ".join(
        f"{network.name.capitalize()}: median {quantity(network.times.median, 'ms')}, "
        f"p99 {quantity(network.times.p99, 'ms')}, {network.times.count} runs."
        for network in _networks(latency)
    )
