"""How far up the ladder a budget lets us go: as much as fits, in a given order, until no axis can take one more step."""

from collections.abc import Callable
from fractions import Fraction
from math import ceil

import numpy as np

from secateur.allocate.budget import Budget, fits
from secateur.allocate.ladder import Ladder, Rules
from secateur.allocate.rank import Ranking, cost_of_best
from secateur.axes import Cost, Integers, Network
from secateur.errors import BudgetError


def fill(
    network: Network,
    ranking: Ranking,
    ladder: Ladder,
    order: Integers,
    budget: Budget,
    rules: Rules,
    bundle: Integers | None = None,
) -> Integers:
    """Take the steps of a ladder in order, leaving out what does not fit.

    Costs never fall when an axis grows. So the longest run of steps that fits is found by bisection; and an axis whose next step
    does not fit once will not fit it later, and is done.

    Args:
        network: What it costs.
        ranking: Which units the steps add.
        ladder: The steps.
        order: The steps by index, best first; the steps of one axis in their own order.
        budget: What must hold.
        rules: What the ladder was built from, for the error.
        bundle: For each step the bundle that its axis grows in, `[steps]`; by default each grows alone. The steps of a bundle
            to the same height stand next to each other in `order`, and are taken all or none.

    Returns:
        How many units of each axis stay, `[axes]`. No axis can take one more step within the budget.

    Raises:
        BudgetError: The bottom of the ladder is over the budget already.
    """
    limits = budget.limits(network.cost())

    def holds(counts: Integers) -> bool:
        return fits(cost_of_best(network, ranking, counts), limits)

    counts = ladder.least
    if not holds(counts):
        raise BudgetError(_out_of_reach(network, cost_of_best(network, ranking, counts), ladder, budget, rules))
    bundle = ladder.axis if bundle is None else bundle
    while len(order):
        taken = _longest_run(holds, counts, ladder, order)
        taken = _whole_steps(bundle[order], ladder.reached[order], taken)
        counts = _after(counts, ladder, order[:taken])
        order = order[taken:]
        order = order[bundle[order] != bundle[order[:1]]]
    return counts


def _longest_run(holds: Callable[[Integers], bool], counts: Integers, ladder: Ladder, order: Integers) -> int:
    """The largest number of steps that fits; by doubling, then by halving, because near the end it is often 0."""
    good, bad = 0, 1
    while bad <= len(order) and holds(_after(counts, ladder, order[:bad])):
        good, bad = bad, 2 * bad
    bad = min(bad, len(order) + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(_after(counts, ladder, order[:middle])):
            good = middle
        else:
            bad = middle
    return good


def _whole_steps(bundle: Integers, reached: Integers, taken: int) -> int:
    """How many of the steps taken are left without those of a bundle that did not get to its next height as a whole."""
    ends = np.append(np.flatnonzero(np.diff(bundle) | np.diff(reached)) + 1, len(bundle))
    return int(np.append(0, ends)[np.searchsorted(ends, taken, side="right")])


def _after(counts: Integers, ladder: Ladder, steps: Integers) -> Integers:
    after = counts.copy()
    np.add.at(after, ladder.axis[steps], ladder.units[steps])
    return after


def _out_of_reach(network: Network, least: Cost, ladder: Ladder, budget: Budget, rules: Rules) -> str:
    dense = network.cost()
    limits = budget.limits(dense)
    lines = [
        _reach("params", budget.params, least.parameters, dense.parameters, limits.parameters),
        _reach("macs", budget.macs, least.macs, dense.macs, limits.macs),
        _reach("bytes", budget.bytes, least.bytes, dense.bytes, limits.bytes),
    ]
    settings = [
        f"floor={rules.floor}",
        f"multiple_of={rules.multiple_of}",
        f"{len(ladder.whole)} of {len(network.axes)} axes excluded",
    ]
    return (
        f"{budget} is out of reach; the smallest network that can be reached has {', '.join(lines)}. That is with "
        f"{', '.join(settings)}: allow more, or relax these; network.frozen says what cannot be pruned, and why"
    )


def _reach(name: str, share: object, least: int, dense: int, limit: int) -> str:
    # Rounded up, so that the number can be copied into a budget.
    reachable = ceil(Fraction(least, max(dense, 1)) * 10_000) / 10_000
    allowed = "" if share is None else f", {limit:,} allowed"
    return f"{name}={reachable} ({least:,} of {dense:,}{allowed})"
