"""What the page shows of a record: chosen, sorted, counted and drawn, ready for the template to set."""

import math
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from secateur.report import latency, silhouette
from secateur.report.comparison import LatencyRecord, Times
from secateur.report.plots import cut, drawable, scores_plot, steps_plot
from secateur.report.quantity import ranges
from secateur.report.record import AxisRecord, FrozenRecord, Proof, RunRecord, Step
from secateur.report.silhouette import Silhouette

MOST_SCORE_PLOTS = 12
"""So many histograms of scores are shown."""

MOST_OPEN_ROWS = 24
"""A table with more rows scrolls within the page."""

MOST_LISTED_UNITS = 1024
"""Of axes with up to so many units, the removed ones are listed by number."""


@dataclass(frozen=True, slots=True)
class AxisView:
    """One row of the picture of the network; `removed` lists units as text, or is None where there are too many."""

    axis: AxisRecord
    picture: Silhouette
    removed: str | None


@dataclass(frozen=True, slots=True)
class ScoreView:
    """One histogram of scores."""

    axis: AxisRecord
    cut: float | None
    plot: Markup

    @property
    def overlap(self) -> bool:
        """Whether units go, but none of the scores parts them from those that stay."""
        return self.cut is None and len(self.axis.kept) < self.axis.size

    @property
    def undrawn(self) -> int:
        """How many scores the histogram has no place for."""
        return int((~drawable(self.axis)).sum())


@dataclass(frozen=True, slots=True)
class StepsView:
    """One metric through the steps that have it."""

    metric: str
    unit: str
    steps: tuple[Step, ...]
    plot: Markup


@dataclass(frozen=True, slots=True)
class LatencyView:
    """One measurement of times."""

    record: LatencyRecord
    dense: Times
    pruned: Times
    order: Markup
    distribution: Markup
    outside: int
    undrawn: bool


@dataclass(frozen=True, slots=True)
class ProofView:
    """One proof; `error` and `allowed` are places on a logarithmic scale in per cent, None where it has none."""

    proof: Proof
    error: float | None
    allowed: float | None


@dataclass(frozen=True, slots=True)
class FrozenView:
    """Everything that is frozen for one reason."""

    reason: str
    positions: int
    places: tuple[FrozenRecord, ...]


def axis_views(record: RunRecord) -> tuple[AxisView, ...]:
    """A row for each axis, in the order of the network."""
    return tuple(
        AxisView(
            axis,
            silhouette.units(axis.size, axis.kept),
            ranges(axis.removed) if axis.size <= MOST_LISTED_UNITS else None,
        )
        for axis in record.axes
    )


def network_profile(record: RunRecord) -> Silhouette | None:
    """The share that stays of each axis, one bar an axis; None where the rows are few enough to see it from them."""
    if len(record.axes) <= MOST_OPEN_ROWS:
        return None
    return silhouette.profile([len(axis.kept) / axis.size for axis in record.axes])


def score_views(record: RunRecord) -> tuple[ScoreView, ...]:
    """Histograms of the axes that lose most units, in the order of the network."""
    scored = [index for index, axis in enumerate(record.axes) if axis.scores]
    most = sorted(scored, key=lambda index: len(record.axes[index].kept) - record.axes[index].size)
    chosen = [record.axes[index] for index in sorted(most[:MOST_SCORE_PLOTS])]
    return tuple(ScoreView(axis, cut(axis), scores_plot(axis, f"scores{n}")) for n, axis in enumerate(chosen))


def steps_views(record: RunRecord) -> tuple[StepsView, ...]:
    """Each metric that at least two steps have, in the order in which they first come."""
    units = {row.name: row.unit for row in record.rows}
    views = []
    for n, metric in enumerate(dict.fromkeys(metric for step in record.steps for metric in step.metrics)):
        steps, unit = tuple(step for step in record.steps if metric in step.metrics), units.get(metric, "")
        if len(steps) > 1:
            views.append(StepsView(metric, unit, steps, steps_plot(metric, unit, steps, f"steps{n}")))
    return tuple(views)


def latency_views(record: RunRecord) -> tuple[LatencyView, ...]:
    """Each measurement of times with its two plots."""
    return tuple(
        LatencyView(
            measured,
            Times.of(measured.dense),
            Times.of(measured.pruned),
            latency.order_plot(measured, f"order{n}"),
            latency.distribution_plot(measured, f"distribution{n}"),
            latency.outside(measured),
            latency.undrawn(measured),
        )
        for n, measured in enumerate(record.latency)
    )


def proof_views(record: RunRecord) -> tuple[ProofView, ...]:
    """Each proof with its error and its tolerance on one logarithmic scale, which all of them share."""
    on_scale = [proof for proof in record.proofs if _has_scale(proof)]
    numbers = [number for proof in on_scale for number in (proof.value, proof.tolerance) if number > 0]
    if not numbers:
        return tuple(ProofView(proof, None, None) for proof in record.proofs)
    low, high = math.log10(min(numbers)) - 0.7, math.log10(max(numbers)) + 0.7

    def place(number: float) -> float:
        return round(100 * (math.log10(number) - low) / (high - low), 2) if number > 0 else 0.0

    return tuple(
        ProofView(proof, place(proof.value), place(proof.tolerance))
        if proof in on_scale
        else ProofView(proof, None, None)
        for proof in record.proofs
    )


def frozen_views(record: RunRecord) -> tuple[FrozenView, ...]:
    """What is frozen, by reason; the reason that holds most positions comes first, and so within each reason."""
    ordered = sorted(record.frozen, key=lambda frozen: (frozen.reason, -frozen.positions, frozen.where))
    groups = [(reason, tuple(places)) for reason, places in groupby(ordered, key=lambda frozen: frozen.reason)]
    views = [FrozenView(reason, sum(place.positions for place in places), places) for reason, places in groups]
    return tuple(sorted(views, key=lambda view: (-view.positions, view.reason)))


def _has_scale(proof: Proof) -> bool:
    return proof.tolerance > 0 and proof.value >= 0 and math.isfinite(proof.value) and math.isfinite(proof.tolerance)
