"""One level for each layer, so that all of them fit and the errors add up to little."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from secateur.errors import BudgetError


def lowest_errors(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], most: int) -> list[int]:
    """Choose a level of each layer, by the largest fall of the error for its cost.

    The levels of a layer that lie above a straight line between two others are passed over, so that the error falls less for its
    cost with each step. Up to the first step that does not fit, no choice that costs as little has a lower error: what greed can
    lose is what this one step would have brought. Of steps that do not fit, as much is taken as does.

    Args:
        errors: For each layer, the error of each of its levels.
        costs: For each layer, what its levels cost, ascending.
        most: What all may cost together.

    Returns:
        The place of the level of each layer.

    Raises:
        BudgetError: The first levels together cost more.

    Example:
        >>> lowest_errors([[9.0, 4.0, 0.0], [5.0, 1.0, 0.0]], [[1, 2, 3], [1, 2, 3]], 4)
        [2, 0]
    """
    least = sum(each[0] for each in costs)
    if least > most:
        raise BudgetError(
            f"{most} parameters may stay, and the lowest ranks have {least}; allow more, or exclude layers"
        )
    steps = sorted(step for layer, each in enumerate(zip(errors, costs, strict=True)) for step in _steps(layer, *each))
    levels, left, open_ = [0] * len(costs), most - least, set(range(len(costs)))
    for slope, layer, level in steps:
        if layer in open_ and slope < 0:
            cost, now = costs[layer], levels[layer]
            reached = bisect_right(cost, cost[now] + left, hi=level + 1) - 1
            levels[layer], left = reached, left - (cost[reached] - cost[now])
            if reached < level:
                open_.remove(layer)
    return levels


def _steps(layer: int, errors: Sequence[float], costs: Sequence[int]) -> list[tuple[float, int, int]]:
    """The steps of a layer: how the error changes for its cost, ascending; the layer; and where they lead."""
    pairs = list(pairwise(_hull(errors, costs)))
    slopes = accumulate((_slope(errors, costs, a, b) for a, b in pairs), max)  # in order in spite of rounding
    return [(slope, layer, b) for slope, (_, b) in zip(slopes, pairs, strict=True)]


def _hull(errors: Sequence[float], costs: Sequence[int]) -> list[int]:
    """The levels with which the error falls ever less for its cost, the first and the last among them."""
    hull: list[int] = []
    for level in range(len(costs)):
        while len(hull) > 1 and _slope(errors, costs, hull[-2], level) < _slope(errors, costs, hull[-2], hull[-1]):
            hull.pop()
        hull.append(level)
    return hull


def _slope(errors: Sequence[float], costs: Sequence[int], a: int, b: int) -> float:
    return (errors[b] - errors[a]) / (costs[b] - costs[a])
