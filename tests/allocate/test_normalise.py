"""Scores of different axes become comparable, and keep their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secateur.allocate import normalise
from secateur.allocate.normalise import Normaliser

EVERY = [normalise.unchanged, normalise.mean, normalise.maximum, normalise.standard]
SCALE_FREE = [normalise.mean, normalise.maximum, normalise.standard]
any_scores = arrays(np.float64, st.integers(1, 8), elements=st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize("function", EVERY)
@given(scores=any_scores)
def test_order_stays_and_nothing_overflows(function: Normaliser, scores: np.ndarray) -> None:
    values = function(scores)

    assert np.isfinite(values).all()
    assert (np.diff(values[np.argsort(scores, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("function", SCALE_FREE)
@given(scores=arrays(np.float64, 5, elements=st.floats(-8, 8, width=16)), exponent=st.integers(-60, 60))
def test_the_scale_of_an_axis_does_not_matter(function: Normaliser, scores: np.ndarray, exponent: int) -> None:
    """A power of two, so that scaling itself does not round."""
    np.testing.assert_array_equal(function(scores * 2.0**exponent), function(scores))


def test_each_normaliser_follows_its_formula() -> None:
    scores = np.array([1.0, -2.0, 5.0, 4.0])

    np.testing.assert_array_equal(normalise.unchanged(scores), scores)
    np.testing.assert_allclose(normalise.mean(scores), scores / 3, rtol=1e-15)
    np.testing.assert_allclose(normalise.maximum(scores), scores / 5, rtol=1e-15)
    np.testing.assert_allclose(normalise.standard(scores), (scores - 2) / np.sqrt(7.5), rtol=1e-14)


@pytest.mark.parametrize("function", EVERY)
def test_equal_scores_stay_equal(function: Normaliser) -> None:
    assert np.ptp(function(np.full(3, 0.1))) == 0
    assert (function(np.zeros(3)) == 0).all()
