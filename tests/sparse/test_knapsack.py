"""One level of each layer: no other choice that lets enough go costs less."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BudgetError
from secateur.sparse.knapsack import cheapest

Layers = list[list[tuple[float, int]]]
LEVEL = st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 3.0, 1000.0]), st.integers(0, 9))
LAYERS = st.lists(st.lists(LEVEL, min_size=1, max_size=4), min_size=1, max_size=5)


def chosen(layers: Layers, least: int) -> tuple[float, int]:
    """The cost of what is chosen, and how much goes."""
    places = cheapest([[c for c, _ in each] for each in layers], [[n for _, n in each] for each in layers], least)
    levels = [each[i] for each, i in zip(layers, places, strict=True)]
    return sum(c for c, _ in levels), sum(n for _, n in levels)


@settings(deadline=None)
@given(LAYERS, st.integers(0, 100))
def test_no_other_choice_costs_less(layers: Layers, percent: int) -> None:
    least = sum(max(n for _, n in each) for each in layers) * percent // 100
    choices = list(product(*layers))
    best = min(sum(c for c, _ in choice) for choice in choices if sum(n for _, n in choice) >= least)
    cost, gone = chosen(layers, least)
    assert gone >= least
    assert cost == pytest.approx(best)


def test_levels_that_are_all_alike_still_let_enough_go() -> None:
    assert chosen([[(1.0, 0), (1.0, 3)]] * 4, 7)[1] >= 7
    assert chosen([[(0.0, 0), (0.0, 3)]] * 4, 12) == (0.0, 12)


def test_large_counts_are_told_apart() -> None:
    layers = [[(0.0, 0), (1.0, 10**9)], [(0.0, 0), (1.0 + 1e-4, 10**9)], [(0.0, 0), (1e-3, 10**6)]]
    assert chosen(layers, 10**9 + 10**5) == (1.001, 10**9 + 10**6)


def test_what_no_level_reaches_is_refused() -> None:
    with pytest.raises(BudgetError, match="the highest levels let 6 go, and 7 are to go; give higher levels"):
        cheapest([[0.0, 1.0], [0.0, 1.0]], [[0, 3], [0, 3]], 7)
