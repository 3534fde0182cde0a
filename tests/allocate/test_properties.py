"""What holds of every allocation, on random networks: checked against brute force and the shapes of the plan's tensors."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateur.allocate import Allocator, Budget, Global, Uniform, normalise
from secateur.allocate.ladder import Rules, build_ladder
from secateur.allocate.multiples import axis_steps
from secateur.allocate.rank import rank, worths
from secateur.axes import Network, Plan
from secateur.errors import BudgetError

NetworkOf = Callable[..., Network]
unhurried = settings(deadline=None)  # on a busy machine a run may wait
SHARES = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    """Up to three axes, in tensors and contractions with dims alone, side by side, as products, and with fixed parts."""
    axes = {name: draw(st.integers(2, 9)) for name in "abc"[: draw(st.integers(1, 3))]}
    segment = st.lists(st.sampled_from(sorted(axes)), min_size=1, max_size=2, unique=True).flatmap(
        lambda names: st.sampled_from([(*names,), (*names, 2)])
    )
    dim = st.integers(1, 3) | st.lists(segment | st.just((3,)), min_size=1, max_size=2).map(tuple)
    tensors = {
        f"t{i}.weight": tuple(dims)
        for i, dims in enumerate(draw(st.lists(st.lists(dim, min_size=1, max_size=3), max_size=4)))
    }
    tensors |= {f"{name}.bias": ([(name,)],) for name in axes}
    contractions = draw(st.lists(st.tuples(st.integers(1, 5), st.lists(dim, max_size=3)), max_size=4))
    return {"axes": axes, "tensors": tensors, "contractions": contractions, "buffers": {"a.bias"}}


budgets = st.builds(
    Budget,
    params=st.sampled_from([*SHARES, None]),
    macs=st.sampled_from([*SHARES, None]),
    bytes=st.sampled_from(SHARES),
)
multiples = st.sampled_from([1, 1, 2, 3, 4])
allocators = st.builds(
    Global, budgets, per_cost=st.booleans(), floor=st.sampled_from([0, 0.1, 0.4]), multiple_of=multiples
) | st.builds(Uniform, budgets, multiple_of=multiples)
score_lists = st.lists(st.lists(st.integers(0, 5), min_size=9, max_size=9), min_size=3, max_size=3)
"""Small integers, so that ties are frequent."""


@unhurried
@given(networks(), allocators, score_lists)
def test_a_budget_is_met_exactly(
    network_of: NetworkOf, spec: dict[str, Any], allocate: Allocator, numbers: Any
) -> None:
    """It holds; no axis can take one more step; and where there is no plan, not even the least of every axis holds."""
    network = network_of(**spec)
    reachable = counts_allowed(network, allocate)
    scores = scores_of(network, numbers)
    try:
        plan = allocate(network, scores)
    except BudgetError:
        assert not holds(network, allocate.budget, {name: counts[0] for name, counts in reachable.items()})
        return

    assert holds(network, allocate.budget, plan.counts)
    assert spent(network, plan) == spent_by_counts(network, plan.counts)
    for name, kept in plan.counts.items():
        more = [n for n in reachable[name] if n > kept]
        assert kept in reachable[name]
        assert not more or not holds(network, allocate.budget, plan.counts | {name: more[0]})


@unhurried
@given(networks(), allocators, score_lists)
def test_the_units_that_stay_are_the_best_of_their_axis(
    network_of: NetworkOf, spec: dict[str, Any], allocate: Allocator, numbers: Any
) -> None:
    """The first in the order (score falling, index rising)."""
    network = network_of(**spec)
    scores = scores_of(network, numbers)
    try:
        plan = allocate(network, scores)
    except BudgetError:
        return

    for axis in plan.axes:
        best_first = sorted(range(axis.size), key=lambda unit: (-scores[axis.name][unit], unit))
        assert axis.kept == tuple(sorted(best_first[: len(axis.kept)]))


@unhurried
@given(networks(), budgets, score_lists, st.sampled_from([0, 0.2]))
def test_global_equals_its_definition_unit_by_unit(
    network_of: NetworkOf, spec: dict[str, Any], budget: Budget, numbers: Any, floor: float
) -> None:
    """From the floor up, the best unit of all that still fits, until none does."""
    network = network_of(**spec)
    scores = scores_of(network, numbers)
    counts = {axis.name: max(1, ceil(Fraction(str(floor)) * axis.size)) for axis in network.axes}
    if not holds(network, budget, counts):
        return
    value = {name: normalise.mean(np.sort(s)[::-1]) for name, s in scores.items()}
    sizes = {axis.name: axis.size for axis in network.axes}
    while open_axes := [
        n for n in counts if counts[n] < sizes[n] and holds(network, budget, counts | {n: counts[n] + 1})
    ]:
        counts[max(open_axes, key=lambda name: value[name][counts[name]])] += 1

    assert Global(budget, floor=floor)(network, scores).counts == counts


@unhurried
@given(networks(), budgets, score_lists)
def test_uniform_equals_its_definition_unit_by_unit(
    network_of: NetworkOf, spec: dict[str, Any], budget: Budget, numbers: Any
) -> None:
    """From one unit up, the unit that leaves its axis the smallest share, of all that still fit, until none does."""
    network = network_of(**spec)
    sizes = {axis.name: axis.size for axis in network.axes}
    counts = dict.fromkeys(sizes, 1)
    if not holds(network, budget, counts):
        return
    while open_axes := [
        n for n in counts if counts[n] < sizes[n] and holds(network, budget, counts | {n: counts[n] + 1})
    ]:
        counts[min(open_axes, key=lambda name: Fraction(counts[name] + 1, sizes[name]))] += 1

    assert Uniform(budget)(network, scores_of(network, numbers)).counts == counts


@unhurried
@given(networks(), budgets, score_lists)
def test_no_counts_at_all_beat_global_on_a_single_axis(
    network_of: NetworkOf, spec: dict[str, Any], budget: Budget, numbers: Any
) -> None:
    """With all axes but one excluded, by trying every count."""
    network = network_of(**spec)
    others = tuple(axis.name for axis in network.axes[1:])
    size = network.axes[0].size
    best = max((n for n in range(1, size + 1) if holds(network, budget, {"a": n})), default=None)
    allocate = Global(budget, floor=0, exclude=others)
    if best is None:
        with pytest.raises(BudgetError):
            allocate(network, scores_of(network, numbers))
    else:
        assert allocate(network, scores_of(network, numbers)).counts["a"] == best


@unhurried
@given(
    scores=st.lists(st.sampled_from([-0.9, 0.1, 0.9]), min_size=10, max_size=10),
    multiple_of=multiples,
    floor=st.sampled_from([0, 0.3]),
)
@example(scores=[0.9] * 10, multiple_of=3, floor=0)
def test_worth_never_rises_along_an_axis(
    network_of: NetworkOf, scores: list[float], multiple_of: int, floor: float
) -> None:
    """Not even by rounding, as the mean of 0.9, 0.9 and 0.9 is less than 0.9; or sorting would mix up the steps of an axis."""
    network = network_of({"a": 10}, {"a": ([("a",)],)})
    ladder = build_ladder(network, Rules(floor, multiple_of, ()))

    worth = worths(network, rank(network, {"a": np.array(scores)}, ladder), ladder, normalise.unchanged)

    assert len(worth) == len(ladder.units)
    assert (np.diff(worth) <= 0).all()


@unhurried
@given(networks(), allocators, score_lists)
def test_equal_inputs_give_equal_bytes(
    network_of: NetworkOf, spec: dict[str, Any], allocate: Allocator, numbers: Any
) -> None:
    try:
        plans = [allocate(network := network_of(**spec), scores_of(network, numbers)).to_json() for _ in range(2)]
    except BudgetError:
        return

    assert plans[0] == plans[1]


@unhurried
@given(networks(), budgets, st.integers(0, 99))
def test_renaming_units_renames_what_stays(
    network_of: NetworkOf, spec: dict[str, Any], budget: Budget, seed: int
) -> None:
    """Units without ties, permuted within each axis."""
    network = network_of(**spec)
    generator = np.random.default_rng(seed)
    scores = {axis.name: generator.permutation(axis.size) + 1.0 for axis in network.axes}
    orders = {axis.name: generator.permutation(axis.size) for axis in network.axes}
    try:
        kept = Global(budget)(network, scores).kept
    except BudgetError:
        return
    permuted = Global(budget)(network, {name: s[orders[name]] for name, s in scores.items()}).kept

    assert {n: sorted(orders[n][units]) for n, units in permuted.items()} == {
        n: units.tolist() for n, units in kept.items()
    }


def scores_of(network: Network, numbers: list[list[int]]) -> dict[str, np.ndarray]:
    return {a.name: np.array(row[: a.size], dtype=float) for a, row in zip(network.axes, numbers, strict=False)}


def counts_allowed(network: Network, allocate: Any) -> dict[str, list[int]]:
    """By the rules in words: at least the floor and a step, and multiples of the step, or all."""
    floor = Fraction(str(getattr(allocate, "floor", 0)))
    steps = axis_steps(network, allocate.multiple_of, frozenset())
    return {
        axis.name: [
            n
            for n in range(1, axis.size + 1)
            if n >= floor * axis.size and (n % steps[axis.name] == 0 or n == axis.size)
        ]
        for axis in network.axes
    }


def holds(network: Network, budget: Budget, counts: Mapping[str, int]) -> bool:
    whole = {axis.name: axis.size for axis in network.axes}
    shares = (budget.params, budget.macs, budget.bytes)
    found, dense = spent_by_counts(network, whole | dict(counts)), spent_by_counts(network, whole)
    return all(
        s is None or now <= Fraction(str(s)) * before for s, now, before in zip(shares, found, dense, strict=True)
    )


def spent_by_counts(network: Network, counts: Mapping[str, int]) -> tuple[int, int, int]:
    return spent(network, network.plan({name: range(n) for name, n in counts.items()}))


def spent(network: Network, plan: Plan) -> tuple[int, int, int]:
    """Parameters and bytes from the shapes of the plan's tensors, MACs by counting the positions that stay."""
    after = {name: spec.shape for name, spec in network.tensors.items()}
    after |= {cut.name: cut.shape_after for cut in plan.tensors}
    stays = np.append(np.concatenate([np.isin(np.arange(axis.size), axis.kept) for axis in plan.axes]), True)
    macs = sum(c.factor * prod(int(stays[d].all(axis=0).sum()) for d in c.dims) for c in network.contractions)
    parameters = sum(prod(shape) for name, shape in after.items() if network.tensors[name].parameter)
    return parameters, macs, 4 * sum(map(prod, after.values()))
