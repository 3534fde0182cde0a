"""How the scores of different axes become comparable: each function maps one axis' scores to new ones in the same order.

A score's scale depends on the layer it comes from: wide layers have small weights, late ones small gradients. Ranked raw, all
units of one axis can come before all units of another.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Normaliser = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes the scores of one axis, `[units]`, highest first, and returns comparable ones; must not change their order."""


def unchanged(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores as they are, for those that already share a unit, such as a change of the loss.

    Args:
        scores: The scores of one axis, `[units]`.

    Returns:
        The same.

    Example:
        >>> unchanged(np.array([1.0, 3.0])).tolist()
        [1.0, 3.0]
    """
    return scores


def mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores over their mean size: 1 is an average unit of its axis.

    Args:
        scores: The scores of one axis, `[units]`.

    Returns:
        `scores / mean(|scores|)`; zeros where all are zero. The absolute value keeps the order where scores are negative.

    Example:
        >>> mean(np.array([1.0, 3.0])).tolist()
        [0.5, 1.5]
    """
    # Over the maximum first, because the sum of scores near the end of the float range is infinite.
    scaled = maximum(scores)
    size = float(np.abs(scaled).mean())
    return scaled / size if size > 0 else scaled


def maximum(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores over the largest: 1 is the best unit of its axis.

    Args:
        scores: The scores of one axis, `[units]`.

    Returns:
        `scores / max(|scores|)`; zeros where all are zero.

    Example:
        >>> maximum(np.array([1.0, 4.0])).tolist()
        [0.25, 1.0]
    """
    largest = float(np.abs(scores).max(initial=0.0))
    return scores / largest if largest > 0 else scores


def standard(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard scores: how many standard deviations above its axis' mean a unit is.

    Args:
        scores: The scores of one axis, `[units]`.

    Returns:
        `(scores - mean) / standard deviation`; zeros where all are equal.

    Example:
        >>> standard(np.array([2.0, 4.0])).tolist()
        [-1.0, 1.0]
    """
    scaled = maximum(scores)
    if scaled.size == 0 or (scaled == scaled[0]).all():
        return np.zeros_like(scaled)
    return (scaled - float(scaled.mean())) / float(scaled.std())
