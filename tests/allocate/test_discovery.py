"""Tests that are significant together, against the definition and SciPy; and what an allocation makes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

from secateur.allocate import Budget, Global, Insignificant, normalise
from secateur.allocate.discovery import largest_discovery, two_sided
from secateur.axes import Network
from secateur.errors import BudgetError

WHOLE = Budget(params=1.0)


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.049, 0.05, 0.2, 1.0]), min_size=1, max_size=12))
def test_discoveries_are_those_of_the_definition(p_values: list[float]) -> None:
    """The most hypotheses k whose k smallest p-values are at most k / m times the rate; and as scipy adjusts p-values."""
    m, rate = len(p_values), 0.05
    most = max((k for k in range(1, m + 1) if sorted(p_values)[k - 1] <= rate * k / m), default=0)
    limit = largest_discovery(np.array(p_values), rate)
    assert sum(p <= limit for p in p_values) == most
    adjusted = false_discovery_control(p_values)
    clear = abs(adjusted - rate) > 1e-12  # where the two round differently
    assert [p <= limit for p, is_clear in zip(p_values, clear, strict=True) if is_clear] == list(
        adjusted[clear] <= rate
    )


def test_p_values_are_those_of_both_tails() -> None:
    z = np.linspace(0, 30, 50)
    np.testing.assert_allclose(two_sided(z), 2 * norm.sf(z), rtol=1e-10)
    assert two_sided(np.array([-1.0])) == 1


def test_units_that_are_not_significant_go_whatever_the_budget_allows(two_layers: Network) -> None:
    """All twelve are tested together: p = 0.0004 for z = 3.5, and the sixth smallest may be 0.05 * 6 / 12."""
    scores = {"wide": np.array([0.1, 3.5, 3.5, 9, 0.2, 0.3, 3.5, 1.0]), "narrow": np.array([1.9, 4, 0, 4])}

    assert Insignificant(WHOLE)(two_layers, scores).kept["wide"].tolist() == [1, 2, 3, 6]
    assert Insignificant(WHOLE)(two_layers, scores).kept["narrow"].tolist() == [1, 3]


def test_a_budget_holds_where_too_many_are_significant(two_layers: Network) -> None:
    scores = {"wide": np.arange(10.0, 18), "narrow": np.arange(20.0, 24)}
    half = Budget(params=0.5)

    assert Insignificant(WHOLE)(two_layers, scores) == two_layers.plan({})
    assert Insignificant(half)(two_layers, scores) == Global(half, normalise=normalise.unchanged)(two_layers, scores)


def test_as_many_stay_as_the_rules_say_where_nothing_is_significant(two_layers: Network) -> None:
    scores = {"wide": np.zeros(8), "narrow": np.zeros(4)}

    assert Insignificant(WHOLE)(two_layers, scores).counts == {"wide": 1, "narrow": 1}
    assert Insignificant(WHOLE, floor=0.5)(two_layers, scores).counts == {"wide": 4, "narrow": 2}
    assert Insignificant(WHOLE, exclude=("wide",))(two_layers, scores).counts == {"wide": 8, "narrow": 1}


def test_widths_that_the_hardware_likes_are_rounded_up(two_layers: Network) -> None:
    scores = {"wide": np.array([9.0, 9, 9, 9, 9, 0, 0, 0]), "narrow": np.full(4, 9.0)}

    assert Insignificant(WHOLE, multiple_of=4)(two_layers, scores).counts == {"wide": 8, "narrow": 4}
    assert Insignificant(WHOLE, multiple_of=2)(two_layers, scores).counts == {"wide": 6, "narrow": 4}


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_false_discovery_rate_is_between_0_and_1(rate: float) -> None:
    with pytest.raises(BudgetError, match="the rate is above 0 and below 1"):
        Insignificant(WHOLE, rate=rate)
