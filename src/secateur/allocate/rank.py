"""The units of every axis by score, and what each step up the ladder is worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.budget import Budget
from secateur.allocate.ladder import Ladder
from secateur.allocate.normalise import Normaliser
from secateur.axes import Cost, Integers, Network, Plan, Scores
from secateur.errors import PlanError


@dataclass(frozen=True, slots=True)
class Ranking:
    """The units of the axes that may shrink.

    Attributes:
        scores: For each axis' name the scores of its units, `[axis.size]`, finite.
        best_first: For each axis' name its units, the highest score first; ties by index.
    """

    scores: Mapping[str, NDArray[np.float64]]
    best_first: Mapping[str, Integers]


def rank(network: Network, scores: Scores, ladder: Ladder) -> Ranking:
    """Check the scores, and sort the units of each axis that is not kept whole.

    Raises:
        PlanError: An axis has no scores, too few or too many, or some that are not finite; or there is no such axis.
    """
    for name in scores:
        network.axis(name)
    checked = {a.name: _checked(a.name, a.size, scores) for a in network.axes if a.name not in ladder.whole}
    return Ranking(checked, {name: np.argsort(-values, kind="stable") for name, values in checked.items()})


def worths(network: Network, ranking: Ranking, ladder: Ladder, normalise: Normaliser) -> NDArray[np.float64]:
    """What each step of the ladder is worth: the mean normalised score of the units that it adds, `[steps]`.

    Along an axis the worth never rises, so that sorting keeps the steps of an axis in order.

    Raises:
        PlanError: The normaliser returned something else than one finite number a unit.
    """
    found = [np.zeros(0)]
    ends = np.searchsorted(ladder.axis, np.arange(len(network.axes)), side="right")
    for i, (axis, units) in enumerate(zip(network.axes, np.split(ladder.units, ends), strict=False)):
        if len(units):
            # Sorted first, so that sums inside a normaliser round alike however the units are numbered.
            best_first = ranking.scores[axis.name][ranking.best_first[axis.name]]
            values = _normalised(axis.name, best_first, normalise)
            starts = np.cumsum([0, *units[:-1]])
            sums = np.add.reduceat(values[ladder.least[i] :] / np.repeat(units, units), starts)
            found.append(np.minimum.accumulate(sums))
    return np.concatenate(found)


def cost_of_best(network: Network, ranking: Ranking, counts: Integers) -> Cost:
    """What so many of the best units of each axis cost, `[axes]`: of lists it matters which modules these are."""
    numbers = zip([axis.name for axis in network.axes], counts.tolist(), strict=True)
    lists = network.axes_of_lists.intersection(ranking.best_first)
    return network.cost({name: ranking.best_first[name][:n] if name in lists else n for name, n in numbers})


def savings(network: Network, ladder: Ladder, budget: Budget) -> NDArray[np.float64]:
    """What removing one unit of an axis from the dense network saves, `[axes]`: a share of the limited costs, summed."""
    dense = network.cost()
    saved = []
    for axis, least in zip(network.axes, ladder.least, strict=True):
        removed = int(axis.size - least)
        saved.append(_share_saved(network.cost({axis.name: int(least)}), dense, budget) / max(removed, 1))
    return np.array(saved)


def best_units(network: Network, ranking: Ranking, counts: Integers) -> Plan:
    """The plan that keeps so many of the best units of each axis."""
    kept = zip(network.axes, counts.tolist(), strict=True)
    return network.plan({axis.name: ranking.best_first[axis.name][:n] for axis, n in kept if n < axis.size})


def _checked(name: str, size: int, scores: Scores) -> NDArray[np.float64]:
    if name not in scores:
        raise PlanError(f"axis {name!r} has no scores; give one a unit, {size} of them, or exclude the axis")
    given = np.asarray(scores[name])
    if given.shape != (size,):
        raise PlanError(f"axis {name!r} has {size} units, but its scores have the shape {given.shape}; give one a unit")
    if given.dtype.kind not in "fiub":
        raise PlanError(f"the scores of axis {name!r} are of type {given.dtype}; give real numbers")
    values = given.astype(np.float64)
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise PlanError(
            f"the score of unit {worst} of axis {name!r} is {values[worst]}; look for weights or data that are not finite, "
            "and to keep an axis at any price, exclude it"
        )
    return values


def _normalised(name: str, scores: NDArray[np.float64], normalise: Normaliser) -> NDArray[np.float64]:
    values = np.asarray(normalise(scores), dtype=np.float64)
    if values.shape != scores.shape or not np.isfinite(values).all():
        raise PlanError(
            f"{normalise!r} made of the {len(scores)} scores of axis {name!r} something of shape {values.shape} or not finite; "
            "a normaliser returns one finite number a unit"
        )
    return values


def _share_saved(cost: Cost, dense: Cost, budget: Budget) -> float:
    pairs = (
        (budget.params, cost.parameters, dense.parameters),
        (budget.macs, cost.macs, dense.macs),
        (budget.bytes, cost.bytes, dense.bytes),
    )
    return sum((before - after) / before for share, after, before in pairs if share is not None and before)
