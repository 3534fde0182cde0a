"""How the learning rate changes while training: `cosine`, `constant`."""

from collections.abc import Callable
from math import cos, pi

from secateur.errors import DataError

Schedule = Callable[[int, int | None], float]
"""`(step from 0, number of steps or None) -> factor of the learning rate`."""

WARM_UP = 0.05
"""The share of the steps in which `cosine` rises."""


def cosine(step: int, steps: int | None) -> float:
    """Rise in a straight line over the first twentieth of the steps, then fall to almost 0 on half a cosine, and stay there.

    Args:
        step: The step, from 0.
        steps: How many there will be.

    Returns:
        The factor of the learning rate, in (0, 1].

    Raises:
        DataError: The number of steps is not known.

    Example:
        >>> cosine(0, 4), round(cosine(2, 4), 2)
        (1.0, 0.5)

    Source:
        I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5, with no restart
        and a minimum of 0.
    """
    if steps is None:
        raise DataError(
            "the data does not say how many batches it has, which a learning rate that falls to 0 has to know; give "
            "FineTune(batch_limit=...), data with a length such as a list or a DataLoader, or FineTune(schedule=constant)"
        )
    rising, step = int(WARM_UP * steps), min(step, steps - 1)  # data may have more batches than it says
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + cos(pi * (step - rising) / (steps - rising)))


def constant(step: int, steps: int | None) -> float:  # noqa: ARG001  (a schedule's signature)
    """The same learning rate all the time; needs no number of steps.

    Args:
        step: The step, from 0.
        steps: How many there will be, or None.

    Returns:
        1.

    Example:
        >>> constant(3, None)
        1.0
    """
    return 1.0
