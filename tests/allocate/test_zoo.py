"""Allocations on real networks: every budget is held against the sizes of the compact model itself."""

import re
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.allocate import Budget, Global, Uniform
from secateur.allocate.multiples import axis_steps
from secateur.errors import BudgetError
from secateur.testing.zoo import ZOO
from secateur.torch import TracedNetwork

ENTRIES = {entry.name: entry for entry in ZOO}
SHARES = st.sampled_from([0.15, 0.4, 0.6, 0.85, Fraction(2, 3)])


NOTHING = Budget(params=1e-9)


@cache
def prunable() -> tuple[str, ...]:
    """All that have axes, but for LSTMs with a projection: torch wants it narrower than the cell, which no axis says."""
    return tuple(name for name in ENTRIES if traced(name).axes and not has_projection(traced(name).model))


def has_projection(model: nn.Module) -> bool:
    return any(isinstance(module, nn.LSTM) and module.proj_size for module in model.modules())


@cache
def traced(name: str) -> TracedNetwork:
    entry = ENTRIES[name]
    model = entry.build()
    for i, parameter in enumerate(model.parameters()):
        if i % 3 == 1 and parameter.ndim == 1:
            parameter.requires_grad_(False)
    return sc.trace(model, entry.inputs())


def stored(model: nn.Module) -> dict[str, int]:
    """Parameters and bytes, counted in the model."""
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    return {"params": sum(p.numel() for p in parameters), "bytes": sum(t.numel() * t.itemsize for t in tensors)}


@st.composite
def allocators(draw: st.DrawFn) -> Global | Uniform:
    limited = draw(st.sets(st.sampled_from(["params", "macs", "bytes"]), min_size=1))
    budget = Budget(**{name: draw(SHARES) for name in sorted(limited)})
    multiple_of = draw(st.sampled_from([1, 1, 2, 3, 8]))
    if draw(st.booleans()):
        return Uniform(budget, multiple_of=multiple_of)
    return Global(
        budget, per_cost=draw(st.booleans()), floor=draw(st.sampled_from([0, 0.1, 0.5])), multiple_of=multiple_of
    )


@settings(deadline=None, max_examples=100)
@given(st.data(), allocators(), st.integers(0, 99))
def test_a_budget_is_met_exactly_by_the_compact_model(data: Any, allocate: Global | Uniform, seed: int) -> None:
    """It is not exceeded; and with the next best step of units of any axis it would be."""
    name = data.draw(st.sampled_from(prunable()))
    network = traced(name)
    scores = scores_of(network, seed)
    try:
        plan = allocate(network, scores)
    except BudgetError:
        return

    model = network.model
    dense, small = stored(model), stored(sc.compact(model, plan))
    for cost, share in shares_of(allocate.budget).items():
        if cost != "macs":
            assert small[cost] <= exact(share) * dense[cost]

    best = partial(best_of, network, scores)
    assert spent(network, best(plan.counts))["params"] == small["params"]
    assert spent(network, best(plan.counts))["bytes"] == small["bytes"]
    assert holds(network, allocate.budget, best(plan.counts))
    for axis, step in axis_steps(network, allocate.multiple_of, frozenset()).items():
        kept, size = plan.counts[axis], network.axis(axis).size
        assert kept % step == 0 or kept == size
        assert kept >= exact(getattr(allocate, "floor", 0)) * size
        assert kept == size or not holds(network, allocate.budget, best(plan.counts | {axis: min(size, kept + step)}))


@pytest.mark.parametrize(
    "allocate",
    [
        Global(NOTHING, floor=0),
        Global(NOTHING, floor=0.4, multiple_of=4),
        Uniform(NOTHING),
        Uniform(NOTHING, multiple_of=3),
    ],
    ids=["global", "floor and multiples", "uniform", "multiples"],
)
def test_what_a_budget_out_of_reach_says_can_be_reached_can_be(allocate: Global | Uniform) -> None:
    """On every network: the budget that the error names is met, by a compact model of the sizes that it names."""
    for name in prunable():
        network = traced(name)
        scores = scores_of(network, 0)
        with pytest.raises(BudgetError, match="is out of reach") as error:
            allocate(network, scores)
        said = {cost: (float(share), int(n.replace(",", ""))) for cost, share, n in REACH.findall(str(error.value))}
        sizes = {cost: n for cost, (_, n) in said.items()}
        plan = replace(allocate, budget=Budget(**{cost: share for cost, (share, _) in said.items()}))(network, scores)
        assert holds(network, Budget(**{cost: share for cost, (share, _) in said.items()}), plan.kept)

        least = least_counts(network, allocate)
        assert spent(network, best_of(network, scores, least)) == sizes
        small = stored(sc.compact(network.model, network.plan({axis: range(n) for axis, n in least.items()})))
        assert small == {cost: sizes[cost] for cost in small}


def least_counts(network: TracedNetwork, allocate: Global | Uniform) -> dict[str, int]:
    """By the rules in words: as many units as the axis must keep, the floor rounded up, and a step."""
    floor, least = exact(getattr(allocate, "floor", 0)), {}
    for axis, step in axis_steps(network, allocate.multiple_of, frozenset()).items():
        size, few = network.axis(axis).size, network.axis(axis).least
        least[axis] = next(n for n in range(few, size + 1) if n >= floor * size and (n % step == 0 or n == size))
    return least


REACH = re.compile(r"(params|macs|bytes)=([\d.]+) \(([\d,]+) of")


@pytest.mark.parametrize("make", [Global, Uniform])
def test_equal_scores_give_equal_plans_and_break_ties_by_the_index(make: Any) -> None:
    for name in prunable():
        network = traced(name)
        scores = {axis.name: np.ones(axis.size) for axis in network.axes}
        try:
            plans = [make(Budget(params=0.6))(network, scores) for _ in range(2)]
        except BudgetError:
            continue
        assert plans[0].to_json() == plans[1].to_json()
        assert all(cut.kept == tuple(range(len(cut.kept))) for cut in plans[0].axes)


def test_bytes_count_each_tensor_in_its_own_type() -> None:
    """Half of the weights in 16 bits, a buffer in 64: what is limited is what a file would hold."""
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 12).half(), nn.Linear(12, 4)
            self.register_buffer("shift", torch.zeros(12, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x.half()).double() + self.shift
            out: torch.Tensor = self.down(hidden.float())
            return out

    model = Mixed()
    network = sc.trace(model, torch.zeros(1, 4))
    (axis,) = network.axes
    # Of each unit: 4 weights and a bias of 2 bytes, 8 bytes of buffer, 4 weights of 4 bytes; and 4 biases of 4 bytes for all.
    each, fixed = 5 * 2 + 8 + 4 * 4, 4 * 4
    assert stored(model)["bytes"] == 12 * each + fixed
    for share in (0.2, 0.5, 0.77, 0.99):
        plan = Global(Budget(bytes=share), floor=0)(network, {axis.name: np.arange(12.0)})
        expected = int((exact(share) * (12 * each + fixed) - fixed) // each)
        assert plan.counts == {axis.name: expected}
        assert stored(sc.compact(model, plan))["bytes"] == expected * each + fixed


def test_frozen_weights_are_pruned_like_others() -> None:
    """requires_grad says what is trained, not what may go; a layer that shall keep its shape is excluded."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    network = sc.trace(model, torch.zeros(1, 4))
    plan = Global(Budget(macs=0.5))(network, {"0": np.arange(8.0)})
    small = sc.compact(model, plan)
    assert small[0].weight.shape == (4, 4)
    assert not any(parameter.requires_grad for parameter in small.parameters())
    with pytest.raises(BudgetError, match=r"macs=1.0 \(48 of 48, 24 allowed\).*1 of 1 axes excluded"):
        Global(Budget(macs=0.5), exclude=("0",))(network, {})


def scores_of(network: TracedNetwork, seed: int) -> dict[str, np.ndarray]:
    """With ties: small whole numbers."""
    generator = np.random.default_rng(seed)
    return {axis.name: generator.integers(0, 4, axis.size).astype(float) for axis in network.axes}


def shares_of(budget: Budget) -> dict[str, Any]:
    found = {"params": budget.params, "macs": budget.macs, "bytes": budget.bytes}
    return {name: share for name, share in found.items() if share is not None}


def exact(share: Any) -> Fraction:
    return Fraction(str(share))


def best_of(network: TracedNetwork, scores: Any, counts: Any) -> dict[str, Any]:
    """So many units of each axis; of modules in lists, which may differ in size, those with the highest scores."""
    lists = network.axes_of_lists
    return {name: np.argsort(-scores[name], kind="stable")[:n] if name in lists else n for name, n in counts.items()}


def spent(network: TracedNetwork, counts: Any) -> dict[str, int]:
    cost = network.cost(counts)
    return {"params": cost.parameters, "macs": cost.macs, "bytes": cost.bytes}


def holds(network: TracedNetwork, budget: Budget, counts: Any) -> bool:
    whole = {axis.name: axis.size for axis in network.axes}
    now, dense = spent(network, whole | counts), spent(network, whole)
    return all(now[name] <= exact(share) * dense[name] for name, share in shares_of(budget).items())
