"""One level for each layer, so that enough goes in all and the sum of the costs is least."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from secateur.errors import BudgetError


def cheapest(costs: Sequence[Sequence[float]], counts: Sequence[Sequence[int]], least: int) -> list[int]:
    """Choose a level of each layer: the multiple-choice knapsack, as an integer program, solved by HiGHS.

    Args:
        costs: For each layer, the cost of each of its levels; finite.
        counts: For each layer, how much goes at each of its levels, >= 0.
        least: How much is to go in all, to a millionth.

    Returns:
        The place of the level of each layer. The costs of no other choice add up to less, but for a millionth of the largest.

    Raises:
        BudgetError: The highest levels together do not let so much go.

    Example:
        >>> cheapest([[0.0, 1.0, 4.0], [0.0, 2.0, 3.0]], [[0, 5, 10], [0, 5, 10]], 10)
        [0, 2]
    """
    most = sum(map(max, counts))
    if most < least:
        raise BudgetError(
            f"the highest levels let {most} go, and {least} are to go; give higher levels, or ask for less"
        )
    prices = np.concatenate([np.asarray(each, dtype=float) for each in costs])
    sizes = np.concatenate([np.asarray(each, dtype=float) for each in counts])
    one_each = block_diag([np.ones((1, len(each))) for each in costs])
    enough = csr_array(sizes[None] / max(least, 1))
    found = milp(
        prices / max(float(np.abs(prices).max()), np.finfo(float).tiny),
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            vstack([one_each, enough]),
            np.append(np.ones(len(costs)), min(least, 1)),
            np.append(np.ones(len(costs)), np.inf),
        ),
        options={"mip_rel_gap": 0.0},
    )
    assert found.x is not None, found.message  # the highest levels are a solution
    ends = np.cumsum([len(each) for each in costs])[:-1]
    return [int(part.argmax()) for part in np.split(found.x, ends)]
