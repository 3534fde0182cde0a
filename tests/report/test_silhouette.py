"""The outline of what stays is as large as what stays."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.report.silhouette import CELLS, EXACT_UNITS, profile, units


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(st.integers(1, 1000))
    seed, stay = draw(st.integers(0, 2**32)), draw(st.integers(0, size))
    return size, sorted(np.random.default_rng(seed).permutation(size)[:stay].tolist())


@given(axes())
def test_the_area_that_is_drawn_is_the_share_that_stays(axis: tuple[int, list[int]]) -> None:
    size, kept = axis

    # heights are written to 4 digits of 100
    assert heights(units(size, kept).kept, size).mean() == pytest.approx(len(kept) / size, abs=1e-3)


@given(axes())
def test_up_to_a_limit_each_unit_has_a_cell_of_its_own(axis: tuple[int, list[int]]) -> None:
    size, kept = axis
    picture = units(size, kept)

    if size <= EXACT_UNITS:
        assert np.flatnonzero(heights(picture.kept, size)).tolist() == kept
        assert not picture.height_is_share
    else:
        assert picture.cells == CELLS
        assert picture.height_is_share


def test_few_cells_have_gaps_between_them_and_many_do_not() -> None:
    assert units(4, (0,)).gaps.count("M") == 3
    assert units(200, range(200)).gaps == ""


def test_a_profile_has_a_bar_for_each_axis() -> None:
    assert heights(profile([1.0, 0.25, 0.0, 0.5]).kept, 4) == pytest.approx([1.0, 0.25, 0.0, 0.5])


def heights(path: str, width: int) -> np.ndarray:
    """The height over each unit, 0 to 1, from following the path."""
    result, x, y = np.zeros(width), 0, 100.0
    for command, number in re.findall(r"([HV])([\d.]+)", path):
        if command == "V":
            y = float(number)
        else:
            result[x : int(number)] = 1 - y / 100
            x = int(number)
    return result
