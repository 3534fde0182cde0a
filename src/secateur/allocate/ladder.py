"""What can be kept of each axis: the steps from the least that must stay up to the whole axis."""

from dataclasses import dataclass
from math import ceil, lcm

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.budget import exact_share
from secateur.allocate.exclude import excluded_axes
from secateur.allocate.multiples import axis_steps
from secateur.axes import Integers, Network
from secateur.errors import BudgetError, PlanError


@dataclass(frozen=True, slots=True)
class Rules:
    """What an allocation may not do, whatever the budget.

    Attributes:
        floor: The share of each axis that always stays, in [0, 1]; at least one unit does.
        multiple_of: What the kept widths of tensors shall be multiples of, at least 1.
        exclude: Patterns for axes, tensors or modules that keep their shape.
    """

    floor: float
    multiple_of: int
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        exact_share("floor", self.floor, zero=True)
        _check_multiple_of(self.multiple_of)
        _check_exclude(self.exclude)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Every step that an axis can take, axis by axis, from the bottom up.

    Attributes:
        least: For each axis the units that always stay, `[axes]`.
        axis: For each step the axis it belongs to, by index, `[steps]`.
        units: For each step how many units it adds, `[steps]`.
        reached: For each step how many units of its axis are kept after it, `[steps]`.
        whole: The axes that are kept out, by name.
    """

    least: Integers
    axis: Integers
    units: Integers
    reached: Integers
    whole: frozenset[str]


def build_ladder(network: Network, rules: Rules) -> Ladder:
    """Lay out the steps of every axis.

    Raises:
        PlanError: A pattern of `rules.exclude` names nothing.
    """
    whole = excluded_axes(network, rules.exclude)
    step_of = axis_steps(network, rules.multiple_of, whole)
    floor = exact_share("floor", rules.floor, zero=True)
    least, reached = [], []
    for axis in network.axes:
        step = lcm(axis.step, step_of[axis.name])
        lowest = min(axis.size, ceil(max(axis.least, ceil(floor * axis.size)) / step) * step)
        least.append(axis.size if axis.name in whole else lowest)
        reached.append(np.append(np.arange(least[-1] + step, axis.size, step), [axis.size] * (least[-1] < axis.size)))
    before = [np.append(low, counts)[:-1] for low, counts in zip(least, reached, strict=True)]
    return Ladder(
        least=np.array(least, dtype=np.int64),
        axis=np.repeat(np.arange(len(least)), [len(counts) for counts in reached]),
        units=_joined(reached) - _joined(before),
        reached=_joined(reached),
        whole=whole,
    )


def _check_multiple_of(number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise BudgetError(
            f"multiple_of is what widths shall be multiples of, a whole number of 1 or more; got {number!r}"
        )


def _check_exclude(patterns: object) -> None:
    if not isinstance(patterns, tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise PlanError(f"exclude is a tuple of patterns, such as exclude=('classifier*',); got {patterns!r}")


def _joined(parts: list[NDArray[np.int64]]) -> Integers:
    return np.concatenate([np.zeros(0), *parts]).astype(np.int64)
