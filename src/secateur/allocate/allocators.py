"""Which units stay, so that a budget holds: the allocators."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.budget import Budget
from secateur.allocate.discovery import largest_discovery, two_sided
from secateur.allocate.fill import fill
from secateur.allocate.ladder import Ladder, Rules, build_ladder
from secateur.allocate.normalise import Normaliser, mean, unchanged
from secateur.allocate.rank import best_units, rank, savings, worths
from secateur.axes import Integers, Network, Plan, Scores
from secateur.errors import BudgetError, PlanError


class Allocator(Protocol):
    """Decides how much goes from where."""

    def __call__(self, network: Network, scores: Scores) -> Plan:
        """Choose the units that stay.

        Args:
            network: What may be removed, and what it costs.
            scores: For each axis' name one number a unit; higher = keep.

        Returns:
            A plan within the allocator's budget.
        """
        ...


@dataclass(frozen=True, slots=True)
class Global:
    """Rank the units of all axes together, and keep the best that the budget pays for.

    The budget is met exactly: it is never exceeded, and no axis could keep its next best unit (or, with `multiple_of`, its next
    best step of units) without exceeding it. Ties break by the order of the axes, then of the units.

    Args:
        budget: What must hold afterwards.
        normalise: Makes the scores of different axes comparable; see `secateur.allocate.normalise`.
        per_cost: Rank by score over saving: what removing a unit saves of the limited costs, as shares of the dense network,
            while the other axes are whole. For scores that are never negative.
        floor: The share of each axis that always stays, in [0, 1], rounded up; at least one unit does, so no axis empties.
        multiple_of: The kept widths of matrices shall be multiples of this; `secateur.allocate.multiples` has the rule.
        exclude: What keeps its shape: names of axes, or patterns (`fnmatch`) for tensors and for modules with all in them.

    Raises:
        BudgetError: `floor` or `multiple_of` is out of range. When called: the budget cannot be met; says what can be.
        PlanError: `exclude` is no tuple of strings. When called: a pattern that names nothing, scores that do not fit the
            network, or negative ones with `per_cost`.
        AttributeFollowError: When called: an integer in the model's code cannot follow.

    Example:
        >>> import numpy as np
        >>> from secateur.axes import Axis, Network, Slot, TensorSpec
        >>> units = np.arange(4)[None]
        >>> network = Network(
        ...     axes=(Axis("hidden", 4, True, (Slot("hidden.weight", 0, 1),)),),
        ...     frozen=(),
        ...     tensors={"hidden.weight": TensorSpec((4, 3), 4, True)},
        ...     dims={"hidden.weight": (units, None)},
        ... )
        >>> plan = Global(Budget(params=0.5))(network, {"hidden": np.array([0.1, 0.9, 0.4, 0.2])})
        >>> plan.kept["hidden"].tolist()
        [1, 2]

    Source:
        Ranking over the whole network with scores over their mean: G. Fang et al., "DepGraph: Towards Any Structural Pruning",
        CVPR 2023. Score over cost: M. Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS 2022, here as
        one greedy pass in place of the knapsack, with costs instead of latencies.
    """

    budget: Budget
    normalise: Normaliser = mean
    per_cost: bool = False
    floor: float = 0.1
    multiple_of: int = 1
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_budget(self.budget)
        self._rules()

    def __call__(self, network: Network, scores: Scores) -> Plan:
        """Choose the units that stay; see `Allocator`."""
        rules = self._rules()
        ladder = build_ladder(network, rules)
        ranking = rank(network, scores, ladder)
        worth = worths(network, ranking, ladder, self.normalise)
        if self.per_cost:
            worth = _per_cost(worth, savings(network, ladder, self.budget)[ladder.axis])
        best_first = np.argsort(-worth, kind="stable")
        return best_units(network, ranking, fill(network, ranking, ladder, best_first, self.budget, rules))

    def _rules(self) -> Rules:
        return Rules(self.floor, self.multiple_of, self.exclude)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Keep the same share of every axis, as large as the budget pays for; scores decide only within an axis.

    All axes grow together until one more step of some axis is too much. What is then left, less than that step costs, goes to
    axes with cheaper steps, so that the budget is met exactly, as by `Global`; these end up with a somewhat larger share. With
    `alike`, axes of the same size that can take the same steps keep the same number, so that layers that were alike stay so;
    less may then be kept than the budget allows.

    Args:
        budget: What must hold afterwards.
        multiple_of: The kept widths of matrices shall be multiples of this; `secateur.allocate.multiples` has the rule.
        exclude: What keeps its shape: names of axes, or patterns (`fnmatch`) for tensors and for modules with all in them.
        alike: Whether axes of the same size keep the same number.

    Raises:
        BudgetError: `multiple_of` is out of range. When called: the budget cannot be met; says what can be.
        PlanError: `exclude` is no tuple of strings. When called: a pattern that names nothing, or scores that do not fit.
        AttributeFollowError: When called: an integer in the model's code cannot follow.

    Example:
        >>> import numpy as np
        >>> from secateur.axes import Axis, Network, Slot, TensorSpec
        >>> units = np.arange(4)[None]
        >>> network = Network(
        ...     axes=(Axis("hidden", 4, True, (Slot("hidden.weight", 0, 1),)),),
        ...     frozen=(),
        ...     tensors={"hidden.weight": TensorSpec((4, 3), 4, True)},
        ...     dims={"hidden.weight": (units, None)},
        ... )
        >>> plan = Uniform(Budget(params=0.75))(network, {"hidden": np.array([0.1, 0.9, 0.4, 0.2])})
        >>> plan.kept["hidden"].tolist()
        [1, 2, 3]
    """

    budget: Budget
    multiple_of: int = 1
    exclude: tuple[str, ...] = ()
    alike: bool = False

    def __post_init__(self) -> None:
        _check_budget(self.budget)
        self._rules()

    def __call__(self, network: Network, scores: Scores) -> Plan:
        """Choose the units that stay; see `Allocator`."""
        rules = self._rules()
        ladder = build_ladder(network, rules)
        ranking = rank(network, scores, ladder)
        bundle = _bundles(network, ladder) if self.alike else ladder.axis
        smallest_share_first = np.lexsort((bundle, _shares(network, ladder)))
        return best_units(
            network, ranking, fill(network, ranking, ladder, smallest_share_first, self.budget, rules, bundle)
        )

    def _rules(self) -> Rules:
        return Rules(0, self.multiple_of, self.exclude)


@dataclass(frozen=True, slots=True)
class Insignificant:
    """All units go of which the data do not show an effect; and of the others, the least certain until the budget holds.

    Scores are read as z-values, the sizes of effects in standard errors: take `scores.TTest()`. All units that may go are tested
    together. Among those that stay for their score, the share without an effect is at most `rate` on average, where tests are
    independent or positively dependent; the rules below can make others stay.

    Args:
        budget: What must hold afterwards; `Budget(macs=1.0)` leaves it to the tests.
        rate: The false discovery rate, in (0, 1).
        floor: The share of each axis that always stays, in [0, 1], rounded up; at least one unit does, so no axis empties.
        multiple_of: The kept widths of matrices shall be multiples of this; `secateur.allocate.multiples` has the rule.
        exclude: What keeps its shape: names of axes, or patterns (`fnmatch`) for tensors and for modules with all in them.

    Raises:
        BudgetError: `rate`, `floor` or `multiple_of` is out of range. When called: the budget cannot be met; says what can be.
        PlanError: `exclude` is no tuple of strings. When called: a pattern that names nothing, or scores that do not fit.
        AttributeFollowError: When called: an integer in the model's code cannot follow.

    Example:
        >>> import numpy as np
        >>> from secateur.axes import Axis, Network, Slot, TensorSpec
        >>> units = np.arange(4)[None]
        >>> network = Network(
        ...     axes=(Axis("hidden", 4, True, (Slot("hidden.weight", 0, 1),)),),
        ...     frozen=(),
        ...     tensors={"hidden.weight": TensorSpec((4, 3), 4, True)},
        ...     dims={"hidden.weight": (units, None)},
        ... )
        >>> z = np.array([0.5, 1.9, 2.5, 9.0])  # p = 0.617, 0.057, 0.012, 0.000
        >>> Insignificant(Budget(params=1.0))(network, {"hidden": z}).kept["hidden"].tolist()
        [2, 3]

    Source:
        As `secateur.allocate.discovery.largest_discovery`.
    """

    budget: Budget
    rate: float = 0.05
    floor: float = 0.0
    multiple_of: int = 1
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_budget(self.budget)
        if not 0 < self.rate < 1:
            raise BudgetError(f"Insignificant(rate={self.rate}): the rate is above 0 and below 1; 0.05 is usual")
        self._rules()

    def __call__(self, network: Network, scores: Scores) -> Plan:
        """Choose the units that stay; see `Allocator`."""
        rules = self._rules()
        ladder = build_ladder(network, rules)
        ranking = rank(network, scores, ladder)
        p_values = {name: two_sided(z) for name, z in ranking.scores.items()}
        limit = largest_discovery(np.concatenate([np.zeros(0), *p_values.values()]), self.rate)
        sure = np.array([int((p_values.get(axis.name, np.zeros(0)) <= limit).sum()) for axis in network.axes])
        best_first = np.argsort(-worths(network, ranking, ladder, unchanged), kind="stable")
        needed = ladder.reached - ladder.units < sure[ladder.axis]
        counts = fill(network, ranking, ladder, best_first[needed[best_first]], self.budget, rules)
        return best_units(network, ranking, counts)

    def _rules(self) -> Rules:
        return Rules(self.floor, self.multiple_of, self.exclude)


def _shares(network: Network, ladder: Ladder) -> NDArray[np.float64]:
    """Which share of its axis is kept after each step."""
    sizes = np.array([axis.size for axis in network.axes], dtype=np.int64)
    shares: NDArray[np.float64] = ladder.reached / sizes[ladder.axis]
    return shares


def _bundles(network: Network, ladder: Ladder) -> Integers:
    """For each step the number of the axes that have the size, and the steps, of the one that it belongs to."""
    kinds = [(axis.size, *ladder.reached[ladder.axis == a].tolist()) for a, axis in enumerate(network.axes)]
    numbers = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    bundle: Integers = np.array([numbers[kind] for kind in kinds], dtype=np.int64)[ladder.axis]
    return bundle


def _per_cost(worth: NDArray[np.float64], saving: NDArray[np.float64]) -> NDArray[np.float64]:
    """Worth over saving; what saves nothing is worth keeping at any price."""
    if (worth < 0).any():
        raise PlanError(
            "per_cost divides scores by costs, which has no meaning for negative ones; use scores that are never negative "
            "and a normaliser that keeps them so, such as normalise.mean, or per_cost=False"
        )
    return np.divide(worth, saving, out=np.full_like(worth, np.inf), where=saving > 0)


def _check_budget(budget: object) -> None:
    if not isinstance(budget, Budget):
        raise BudgetError(f"the budget is a Budget, such as Budget(macs=0.5); got {budget!r}")
