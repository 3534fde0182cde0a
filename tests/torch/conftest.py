"""What every plan of any model must hold, in one function: the fixture `prune_every_way`.

Three judges that know nothing of each other. Numbers: the compact model equals the masked one, on exact axes. Counts: it
has as many parameters as was predicted. Operators: it runs what the dense model runs, one by one, which also holds where a
norm hides what the numbers would show.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateur as sc
from secateur.axes import Integers, Network, Plan
from secateur.errors import PlanError
from secateur.torch.capture import call, watched
from secateur.torch.operators import Recording
from secateur.torch.replicate import replicate
from secateur.torch.rerun import Expected, check_operators, expected_steps
from secateur.torch.verify import difference, permutation_error

# float64 sums in another order differ by about 1e-16 for each term; a unit out of place changes outputs of order 1.
TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network, and the plans of it that were carried out and found right."""

    network: sc.TracedNetwork
    plans: tuple[Plan, ...]

    @property
    def shrunk(self) -> frozenset[str]:
        """Every dim that some plan made smaller, as `"<tensor>:<dim>"`."""
        return frozenset(
            f"{cut.name}:{d}"
            for plan in self.plans
            for cut in plan.tensors
            for d, after in enumerate(cut.shape_after)
            if after < self.network.tensors[cut.name].shape[d]
        )

    def reasons(self, tensor: str, dim: int) -> list[str]:
        """Why positions of a dim are frozen."""
        return [frozen.reason for frozen in self.network.frozen if (frozen.tensor, frozen.dim) == (tensor, dim)]


@pytest.fixture(scope="session")
def prune_every_way() -> Callable[[nn.Module, Any], Pruned]:
    """`prune_every_way(model, inputs)`: plans of every axis and of all together, each carried out and judged."""
    return check_every_plan


@pytest.fixture(scope="session")
def check_plan() -> Callable[[nn.Module, Network, Plan, Any], None]:
    """`check_plan(model, network, plan, inputs)`: one plan, carried out and judged; the network may be of another model."""

    def check(model: nn.Module, network: Network, plan: Plan, inputs: Any) -> None:
        recording = Recording()
        watched(model, inputs, recording)
        steps = [(step, step.operator) for step in recording.steps]
        unknown = [
            Expected(step, operator, (None,) * len(operator.results), may_miss=False) for step, operator in steps
        ]
        check_one_plan(model, network, plan, inputs, recording, unknown)

    return check


def check_every_plan(model: nn.Module, inputs: Any) -> Pruned:
    model.eval()
    before = snapshot(model)
    network = sc.trace(model, inputs)
    assert network.axes or network.frozen, "neither an axis nor a reason why there is none"
    exact, exact_inputs = in_float64(model, inputs)
    recording = Recording()
    exact_network = watched(exact, exact_inputs, recording)
    assert not network.axes or permutation_error(exact, network, exact_inputs) < TOLERANCE
    plans, refusals = [], []
    for kept in choices(network):
        try:
            plan = network.plan(kept)
        except PlanError as refusal:
            refusals.append(str(refusal))
            continue
        try:
            check_one_plan(
                exact, network, plan, exact_inputs, recording, expected_steps(exact_network, recording, plan)
            )
        except Exception as error:
            error.add_note(f"the plan keeps {plan.counts} of { ({axis.name: axis.size for axis in network.axes}) }")
            raise
        plans.append(plan)
    assert all(refusals), "a plan may be refused, but with a reason"
    if plans:
        sc.verify(model, plans[-1], inputs)
    assert snapshot(model) == before, "the model of the caller was changed"
    return Pruned(network, tuple(plans))


def check_one_plan(
    model: nn.Module,
    network: Network,
    plan: Plan,
    inputs: Any,
    recording: Recording,
    expected: Sequence[Expected],
) -> None:
    small = sc.compact(model, plan)
    output = run(small, inputs)
    assert network.cost(plan).parameters == sum(p.numel() for p in small.parameters())
    assert network.cost(plan.counts) == network.cost(plan) or plan.removal.entries
    cut = [axis for axis in network.axes if plan.counts.get(axis.name, axis.size) < axis.size]
    if all(axis.exact for axis in cut):
        assert difference(run(sc.mask(model, plan), inputs), output) < TOLERANCE
    compared = check_operators(recording, expected, small, inputs)
    assert compared == len(recording.steps) or plan.removal.entries


def choices(network: Network) -> Iterator[Mapping[str, Integers]]:
    """Half of each axis, one unit less of each axis, and four random choices of all axes together."""
    generator = np.random.default_rng(0)

    def some(size: int, count: int) -> Integers:
        return np.sort(generator.choice(size, max(count, 1), replace=False))

    for axis in network.axes:
        for count in {axis.size // 2, axis.size - 1}:
            yield {axis.name: some(axis.size, count)}
    for fewest in (1, 1, 2, 2) if network.axes else ():
        yield {
            axis.name: some(axis.size, int(generator.integers(min(fewest, axis.size), axis.size, endpoint=True)))
            for axis in network.axes
        }


def run(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call(model, inputs)


def in_float64(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    def wide(value: Tensor) -> Tensor:
        return value.detach().double() if value.is_floating_point() else value.detach().clone()

    return replicate(model, wide), pytree.tree_map_only(Tensor, wide, inputs)


def snapshot(model: nn.Module) -> object:
    """All of a model that its caller could see changing, and where the caller's random numbers stand."""
    tensors = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    numbers = {
        (path, name): (type(value), value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple)
    }
    return tensors, numbers, torch.random.get_rng_state().tolist()
