"""What every plan of any model must hold, in one function: the fixture `prune_every_way`.

Three judges that know nothing of each other. Numbers: the compact model equals the masked one, on exact axes. Counts: it
has as many parameters as was predicted. Operators: it runs what the dense model runs, one by one, which also holds where a
norm hides what the numbers would show.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import secateur as sc
from secateur.axes import Integers, Network, Plan
from secateur.errors import PlanError
from secateur.torch.capture import call
from secateur.torch.replicate import replicate
from secateur.torch.schema import schema_of
from secateur.torch.verify import difference, permutation_error

# float64 sums in another order differ by about 1e-16 for each term; a unit out of place changes outputs of order 1.
TOLERANCE = 1e-10

LAYOUT = frozenset({"view", "_unsafe_view", "clone", "contiguous", "detach", "alias", "_reshape_alias"})
"""Operators that change no value: whether torch needs them depends on how memory happens to lie."""

NUMBERS = {
    "convolution": {"stride", "padding", "dilation", "output_padding"},
    "roll": {"shifts"},
    "select": {"index"},
    "unfold": {"size", "step"},
}
"""Arguments that torch types as sizes, and that are none."""

EXTENTS = {"arange": {"start", "end", "step"}, "linspace": {"steps"}, "native_group_norm": {"group"}}
"""Arguments that torch types as numbers, and that may be sizes."""

Operator = tuple[str, Mapping[str, str]]
"""Its name, and those of its arguments that are no tensors and no sizes."""


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
    """`check_plan(model, network, plan, inputs)`: one plan, carried out and judged."""
    return check_one_plan


def check_every_plan(model: nn.Module, inputs: Any) -> Pruned:
    model.eval()
    before = snapshot(model)
    network = sc.trace(model, inputs)
    assert network.axes or network.frozen, "neither an axis nor a reason why there is none"
    exact, exact_inputs = in_float64(model, inputs)
    assert not network.axes or permutation_error(exact, network, exact_inputs) < TOLERANCE
    plans, refusals = [], []
    for kept in choices(network):
        try:
            plan = network.plan(kept)
        except PlanError as refusal:
            refusals.append(str(refusal))
            continue
        try:
            check_one_plan(exact, network, plan, exact_inputs)
        except Exception as error:
            error.add_note(f"the plan keeps {plan.counts} of { ({axis.name: axis.size for axis in network.axes}) }")
            raise
        plans.append(plan)
    assert all(refusals), "a plan may be refused, but with a reason"
    if plans:
        sc.verify(model, plans[-1], inputs)
    assert snapshot(model) == before, "the model of the caller was changed"
    return Pruned(network, tuple(plans))


def check_one_plan(model: nn.Module, network: Network, plan: Plan, inputs: Any) -> None:
    small = sc.compact(model, plan)
    output = run(small, inputs)
    assert network.cost(plan.counts).parameters == sum(p.numel() for p in small.parameters())
    cut = [axis for axis in network.axes if plan.counts.get(axis.name, axis.size) < axis.size]
    if all(axis.exact for axis in cut):
        assert difference(run(sc.mask(model, plan), inputs), output) < TOLERANCE
    # where one unit is left, torch may take another way to the same result; an opened layer is another module
    if all(plan.counts[axis.name] > 1 for axis in cut) and not plan.opened:
        ours, theirs = operators(small, inputs), operators(model, inputs)
        other = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (len(ours), len(theirs)))
        assert ours == theirs, f"the compact model runs other operators than the model: {other}"


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


def operators(model: nn.Module, inputs: Any) -> list[Operator]:
    """Every operator of a run but for those that only lay out memory."""
    with WatchOperators() as watch:
        run(model, inputs)
    return watch.seen


class WatchOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = schema_of(func)
        if schema.name not in LAYOUT:
            arguments = dict(zip(schema.arguments, args, strict=False)) | (kwargs or {})
            named = {name: _text(value) for name, value in arguments.items() if name not in sizes_of(func)}
            self.seen.append((schema.name, named))
        return func(*args, **(kwargs or {}))


@cache
def sizes_of(func: Any) -> set[str]:
    """The arguments of an operator that are sizes: those that torch lets be symbolic, for this very reason."""
    symbolic = set(re.findall(r"SymInt\S* (\w+)", str(func._schema)))
    name = schema_of(func).name
    return (symbolic - NUMBERS.get(name, set())) | EXTENTS.get(name, set())


def _text(value: Any) -> str:
    """An argument as text, tensors by their type alone."""
    return str(pytree.tree_map_only(Tensor, lambda tensor: tensor.dtype, value))


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
