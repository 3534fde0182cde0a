"""Levels are chosen within the budget, and against all choices there are."""

from itertools import accumulate, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BudgetError
from secateur.low_rank.levels import lowest_errors

Layer = tuple[list[float], list[int]]


@st.composite
def layer(draw: st.DrawFn, *, even: bool = False) -> Layer:
    """Errors that fall to zero, the less the further for their cost; with `even`, all steps cost 1."""
    steps = draw(st.lists(st.tuples(st.integers(1, 20), st.just(1) if even else st.integers(1, 4)), max_size=4))
    steps.sort(key=lambda step: -step[0])
    falls = [rate * cost for rate, cost in steps]
    return [float(sum(falls[i:])) for i in range(len(falls) + 1)], list(accumulate((c for _, c in steps), initial=1))


def least_error(layers: list[Layer], most: int) -> float:
    """Of all choices that fit."""
    choices = product(*(range(len(costs)) for _, costs in layers))
    fits = (c for c in choices if sum(layers[i][1][level] for i, level in enumerate(c)) <= most)
    return min(sum(layers[i][0][level] for i, level in enumerate(c)) for c in fits)


def chosen(layers: list[Layer], most: int) -> tuple[float, int]:
    levels = lowest_errors([errors for errors, _ in layers], [costs for _, costs in layers], most)
    return tuple(sum(each[kind][level] for each, level in zip(layers, levels, strict=True)) for kind in (0, 1))  # type: ignore[return-value]


@given(st.lists(layer(even=True), min_size=1, max_size=4), st.integers(0, 12))
def test_with_steps_of_one_cost_no_choice_is_better(layers: list[Layer], spare: int) -> None:
    most = len(layers) + spare
    error, cost = chosen(layers, most)
    assert cost <= most
    assert error == least_error(layers, most)


@given(st.lists(layer(), min_size=1, max_size=4), st.integers(0, 30))
def test_greed_loses_no_more_than_one_step(layers: list[Layer], spare: int) -> None:
    most = len(layers) + spare
    error, cost = chosen(layers, most)
    largest = max((b - a for _, costs in layers for a, b in pairwise(costs)), default=0)
    assert cost <= most
    assert error <= least_error(layers, max(most - largest, len(layers)))


def test_a_level_above_the_line_between_its_neighbours_is_passed_over() -> None:
    assert lowest_errors([[10.0, 9.0, 0.0], [10.0, 7.0, 6.0]], [[1, 2, 3], [1, 2, 3]], 5) == [2, 1]


def test_what_brings_nothing_is_not_taken() -> None:
    assert lowest_errors([[0.0, 0.0, 0.0]], [[1, 2, 3]], 3) == [0]


def test_ties_go_to_the_first() -> None:
    assert lowest_errors([[1.0, 0.0], [1.0, 0.0]], [[1, 2], [1, 2]], 3) == [1, 0]


def test_too_little_is_refused() -> None:
    with pytest.raises(BudgetError, match="1 parameters may stay, and the lowest ranks have 2"):
        lowest_errors([[1.0], [1.0]], [[1], [1]], 1)
