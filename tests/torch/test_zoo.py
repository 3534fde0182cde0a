"""Every model of the zoo: the axes are those stated by hand, and all four proofs hold."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.axes import Axis, Integers, Network, Slot
from secateur.testing.zoo import ZOO, ZooEntry
from secateur.torch import compact, trace, verify
from secateur.torch.replicate import replicate
from secateur.torch.state import state_of
from secateur.torch.verify import permutation_error

NUMERIC = [entry for entry in ZOO if entry.numeric]
# float64 sums in another order differ by about 1e-16 for each term; the nets are a few layers deep.
TOLERANCE = 1e-12
CHANGED = 1e-6

entries = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
numeric = pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry.name)


def double(entry: ZooEntry) -> tuple[nn.Module, object]:
    def wide(t: torch.Tensor) -> torch.Tensor:
        return t.detach().double() if t.is_floating_point() else t.detach().clone()

    return replicate(entry.build(), wide), pytree.tree_map_only(torch.Tensor, wide, entry.inputs())


def some_of_each(network: Network, seed: int = 0) -> Mapping[str, Integers]:
    generator = np.random.default_rng(seed)
    return {
        axis.name: np.sort(generator.choice(axis.size, size=int(generator.integers(half, axis.size)), replace=False))
        for axis in network.axes
        for half in [(axis.size + 1) // 2]
    }


def without_slot(network: Network, axis: Axis, slot: Slot) -> Network:
    """The network with the units of one axis forgotten in one slot: what a missing rule would make of it."""
    if slot.tensor not in network.dims:
        left = [entry for entry in network.entries if entry.module.rpartition(".")[0] != slot.tensor]
        return dataclasses.replace(network, entries=tuple(left))
    units = list(network.dims[slot.tensor])
    span, dim = network.unit_range(axis.name), units[slot.dim]
    assert dim is not None
    units[slot.dim] = np.where((dim >= span.start) & (dim < span.stop), -1, dim)
    return dataclasses.replace(network, dims={**network.dims, slot.tensor: tuple(units)})


@entries
def test_axes_are_those_stated_by_hand(entry: ZooEntry) -> None:
    network = trace(entry.build(), entry.inputs())
    found = {(axis.kind, frozenset(map(str, axis.slots)), axis.size, axis.exact) for axis in network.axes}
    assert found == {(axis.kind, axis.slots, axis.units, axis.exact) for axis in entry.axes}


@numeric
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuting_all_axes_leaves_the_output(entry: ZooEntry, seed: int) -> None:
    model, inputs = double(entry)
    assert permutation_error(model, trace(model, inputs), inputs, seed) < TOLERANCE


@numeric
@pytest.mark.parametrize("seed", [0, 1])
def test_removing_units_equals_zeroing_them_on_exact_axes(entry: ZooEntry, seed: int) -> None:
    model, inputs = double(entry)
    network = trace(model, inputs)
    proof = verify(model, network.plan(some_of_each(network, seed)), inputs)
    assert proof.dtype == "float64"
    assert max(proof.zero_is_prune, proof.permutation) < TOLERANCE


@entries
def test_shapes_come_out_as_predicted(entry: ZooEntry) -> None:
    model = entry.build()
    network = trace(model, entry.inputs())
    kept = some_of_each(network)
    plan = network.plan(kept)
    small = compact(model, plan)
    assert type(small) is type(model)
    assert {name: tuple(t.shape) for name, t in state_of(small).items()} == {
        name: next((cut.shape_after for cut in plan.tensors if cut.name == name), spec.shape)
        for name, spec in network.tensors.items()
        if name not in plan.removal.tensors
    }
    cost = network.cost(plan)
    assert cost.parameters == sum(p.numel() for p in small.parameters())
    assert cost.bytes == sum(t.numel() * t.element_size() for t in state_of(small).values())
    again = trace(small, entry.inputs())
    looks_at_values = "Choice" in type(model).__name__ and plan.removal  # other tokens come to the experts that stay
    assert replace(again.cost(), macs=cost.macs if looks_at_values else again.cost().macs) == cost


@numeric
def test_forgetting_any_slot_is_caught_by_the_permutation_test(entry: ZooEntry) -> None:
    model, inputs = double(entry)
    network = trace(model, inputs)
    for axis in network.axes:
        for slot in axis.slots:
            mutant = without_slot(network, axis, slot)
            errors = [permutation_error(model, mutant, inputs, seed, mutant.axis(axis.name)) for seed in range(4)]
            assert max(errors) > CHANGED, f"{axis.name} without {slot} passed"


def test_the_zoo_has_mutants() -> None:
    assert sum(len(axis.slots) for entry in NUMERIC for axis in entry.axes) > 400
