"""What a budget allows, to the last multiply-add."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.allocate import Budget
from secateur.axes import Cost
from secateur.errors import BudgetError

DENSE = Cost(parameters=10, macs=1000, bytes=44)


def test_a_share_is_read_as_it_is_written() -> None:
    """The float 0.3 is below three tenths, and 0.07 * 100 is 7.000000000000001."""
    assert Budget(params=0.3).limits(DENSE).parameters == 3
    assert Budget(params=0.7).limits(DENSE).parameters == 7
    assert Budget(macs=0.07).limits(DENSE).macs == 70
    assert Budget(macs=np.float64(0.29)).limits(DENSE).macs == 290
    assert Budget(macs=Fraction(1, 3)).limits(DENSE).macs == 333


def test_a_limit_is_rounded_down() -> None:
    assert Budget(bytes=0.5, params=0.99).limits(DENSE) == Cost(parameters=9, macs=1000, bytes=22)


def test_a_cost_without_a_share_may_be_all_that_it_is() -> None:
    assert Budget(macs=1).limits(DENSE) == DENSE


@given(st.integers(1, 9999), st.integers(0, 10**18))
def test_limits_are_exact_however_large_the_cost(share: int, dense: int) -> None:
    """Shares with four digits; a float product would be off by hundreds at 10**18."""
    limit = Budget(macs=share / 10_000).limits(Cost(0, dense, 0)).macs

    assert limit == share * dense // 10_000


def test_a_budget_without_a_limit_is_refused() -> None:
    with pytest.raises(
        BudgetError, match=r"limits nothing; give params, macs or bytes, for example Budget\(macs=0.5\)"
    ):
        Budget()


@pytest.mark.parametrize("share", [0, 0.0, -0.1, 1.0001, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cost", ["params", "macs", "bytes"])
def test_a_share_outside_zero_to_one_is_refused(cost: str, share: float) -> None:
    with pytest.raises(BudgetError, match=rf"Budget\({cost}=\.\.\.\) is .* a number in \(0, 1\]; got {share!r}"):
        Budget(**{cost: share})


@pytest.mark.parametrize("share", [True, False, "0.5", 0.5j, [0.5], np.array([0.5, 0.6])])
def test_what_is_no_number_is_refused_by_its_type(share: Any) -> None:
    with pytest.raises(BudgetError, match=rf"a number in \(0, 1\]; got .*, a {type(share).__name__}"):
        Budget(macs=share)


def test_a_percentage_is_refused_with_what_to_write() -> None:
    with pytest.raises(BudgetError, match=r"for 50 % write 0\.5"):
        Budget(macs=50)


def test_a_budget_prints_only_what_it_limits() -> None:
    assert str(Budget(macs=0.5, bytes=0.25)) == "Budget(macs=0.5, bytes=0.25)"


def test_an_absolute_limit_is_a_fraction_of_the_dense_cost() -> None:
    with pytest.raises(
        BudgetError, match=r"for a limit of 5000 give Fraction\(5000, the same cost of network.cost\(\)\)"
    ):
        Budget(params=5000)
    assert Budget(params=Fraction(5000, 7003)).limits(Cost(7003, 1, 1)).parameters == 5000
