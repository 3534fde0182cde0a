"""How far an axis can shrink, for questions of the code that have known answers."""

import numpy as np
import pytest

from secateur.axes.sizes import Comparison, Operation, Width
from secateur.axes.together import Followers
from secateur.errors import AttributeFollowError


def _counts(size: int, symbol: str, number: int, step: int = 1) -> tuple[int, int] | AttributeFollowError:
    width = Width(np.arange(size, dtype=np.int64)[None])
    asked = [Comparison(symbol, width, number, True, "here.py:1")]
    if step > 1:
        asked.append(Comparison("==", Operation("%", width, step), 0, True, "here.py:2"))
    return Followers(asked, [size]).counts([0], size)


@pytest.mark.parametrize("size", [2, 3, 8, 9, 16, 64, 100, 1000])
@pytest.mark.parametrize("least", [1, 2, 5, 8, 9, 17, 63, 999])
def test_the_fewest_units_are_those_that_the_code_asks_for(size: int, least: int) -> None:
    found = _counts(size, ">=", least)
    if least < size:
        assert found == (least, 1)
    else:
        assert isinstance(found, AttributeFollowError)


@pytest.mark.parametrize("size", [4, 8, 16, 64, 96])
@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("least", [1, 7, 20, 40])
def test_and_they_are_a_multiple_of_what_the_code_divides_by(size: int, step: int, least: int) -> None:
    expected = -(-least // step) * step
    found = _counts(size, ">=", least, step)
    if size % step == 0:
        if expected < size:
            assert found == (expected, step)
        else:
            assert isinstance(found, AttributeFollowError)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_an_axis_whose_number_must_not_change_is_refused(size: int) -> None:
    assert isinstance(_counts(size, "==", size), AttributeFollowError)
