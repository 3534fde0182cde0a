"""Runs the compact model as `trace` ran the dense one, and compares the two operator by operator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.axes import Integers, Network, Plan
from secateur.axes.sizes import count_kept
from secateur.errors import VerificationError
from secateur.torch.capture import Inputs, call, open_paths, prepared, same_numbers
from secateur.torch.leaks import Created
from secateur.torch.operators import PLACES, Operator, Recording, Shape, Step, WholeFunctions, operator_of, other_than
from secateur.torch.places import cause_of, running
from secateur.torch.values import KnownValues


@dataclass(frozen=True, slots=True)
class Expected:
    """An operator that the compact model is to run.

    Attributes:
        step: That of the dense model.
        operator: Its operator, with the numbers that it is to have.
        shapes: Those of its results; None for those of which nothing is known.
        may_miss: It may be missing.
    """

    step: Step
    operator: Operator
    shapes: tuple[Shape | None, ...]
    may_miss: bool


def check_operators(recording: Recording, expected: Sequence[Expected], small: nn.Module, inputs: Inputs) -> int:
    """The compact model must run the operators of the dense one, with the same numbers and results of the predicted shapes.

    Where the code looks at values, it is shown those of the dense model: which way a router goes is no matter of sizes.

    Args:
        recording: The dense model's run.
        expected: What the compact model should run, by `expected_steps`.
        small: The compact model.
        inputs: The example inputs.

    Returns:
        How many operators were compared.

    Raises:
        VerificationError: An operator differs; names it, the line, and what differs.
    """
    count, fault = compare_operators(recording, expected, small, inputs)
    if fault:
        raise VerificationError(
            f"the compact model {fault}; something in the code depends on a width, although it is no size: give it a number of "
            "its own, or exclude the axis"
        )
    return count


def compare_operators(
    recording: Recording, expected: Sequence[Expected], small: nn.Module, inputs: Inputs
) -> tuple[int, str]:
    """As `check_operators`: how many operators were compared, and what is wrong with the last of them, if anything."""
    created = Created()
    found = _compared(recording, expected, small, inputs, created)
    created.recall()
    return found


def _compared(
    recording: Recording, expected: Sequence[Expected], small: nn.Module, inputs: Inputs, created: Created
) -> tuple[int, str]:
    """How many operators were compared, and what is wrong with the last of them; no tensor of the run outlives it."""
    copy, _, moved, values = prepared(small, inputs, meta=not recording.has_values)
    paths = {id(module): path for path, module in copy.named_modules()}
    compare = _Compare(expected, values, paths, created)
    try:
        with same_numbers(), open_paths(), compare, compare.whole:
            call(copy, moved)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises is the same fault
        failure = f"does not run as the model does: {cause_of(error)}"
        return compare.count, compare.fault or failure
    if not compare.fault and len(expected) not in compare.next_places():
        step = expected[max(compare.next_places())].step
        return compare.count, f"never runs {step.operator.name}, which the model runs ({step.where})"
    return compare.count, compare.fault


def expected_steps(network: Network, recording: Recording, plan: Plan) -> list[Expected]:
    """What of the dense model's run is to run once a plan is carried out.

    What ran for an entry of a list that goes is left out; the places that the code picks for others move up. What ran between,
    for no entry or for several, may be there less often.
    """
    mask = np.zeros(network.unit_count, dtype=bool)
    kept = plan.kept
    for axis in network.axes:
        mask[network.unit_range(axis.name)][kept.get(axis.name, slice(None))] = True
    count, padded, known = count_kept(mask), np.append(mask, True), dict[int, int]()

    def size(n: int, units: Integers | None) -> int:
        if units is None:
            return n
        if id(units) not in known:
            known[id(units)] = count(units)
        return known[id(units)]

    gone = {entry.unit for entry in network.entries if not mask[entry.unit]}

    def runs_for(step: Step) -> set[int]:
        """The units of lists; of an axis the last, where the step adds what one makes to what those before it made."""
        units = {int(unit) for one in network.results[step.entries] or () if one is not None for unit in one.flat}
        return {max(units.intersection(span)) for span in spans if not units.isdisjoint(span)}

    def left(step: Step) -> tuple[Operator, tuple[Shape | None, ...]]:
        """The operator where its results are fewer or the place that it picks moves up, and the shapes of its results."""
        operator, picked = step.operator, (network.results[step.entries + 1] or (None,))[0]
        found: Sequence[int] = range(len(operator.results))
        if picked is not None and len(found) > 1:
            found = np.flatnonzero(padded[picked].all(axis=0)).tolist()
            operator = replace(operator, results=tuple(operator.results[i] for i in found))
        elif picked is not None:
            moved = {name: str(count(picked)) for name in operator.numbers.keys() & PLACES}
            operator = replace(operator, numbers={**operator.numbers, **moved})
        dims = [network.results[step.first + i] for i in found]
        pairs = zip(operator.results, dims, strict=True)
        return operator, tuple(None if units is None else tuple(map(size, shape, units)) for shape, units in pairs)

    ranges = [network.unit_range(axis.name) for axis in network.axes]
    spans = [range(span.start, span.stop) for span in ranges if not gone.isdisjoint(range(span.start, span.stop))]
    owners = [runs_for(step) if spans else set[int]() for step in recording.steps]
    places = [[i for i, units in enumerate(owners) if not units.isdisjoint(span)] for span in spans]
    between = [range(min(found), max(found) + 1) for found in places]
    return [
        Expected(step, *left(step), (step.gathers or not owner) and any(i in loop for loop in between))
        for i, (step, owner) in enumerate(zip(recording.steps, owners, strict=True))
        if gone.isdisjoint(owner)
    ]


class _Compare(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compares each operator with the recorded one in its place, up to the first that differs."""

    def __init__(
        self,
        expected: Sequence[Expected],
        values: KnownValues | None,
        paths: Mapping[int, str],
        created: Created,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expected, self.values, self.paths = expected, values, paths
        self.created, self.places, self.count, self.fault = created, [0], 0, ""
        self.whole = WholeFunctions(self.seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs) if self.values is None else self.values.run(func, args, kwargs)
        self.created.add(out)
        operator = None if self.whole.inside else operator_of(func, args, kwargs, out)
        if operator is None or self.fault:
            return out
        played = self._played_back(operator)
        if played is not None:
            out = played
            operator = operator_of(func, args, kwargs, out) or operator
        self.seen(operator, out)
        return out

    def seen(self, operator: Operator, _out: Any) -> None:
        """Compare the next operator."""
        if self.fault:
            return
        self.count += 1
        following = self.next_places()
        faults = {place: self._fault_of(place, operator) for place in following}
        self.places = [place + 1 for place in following if not faults[place]]
        if not self.places:
            self.fault = f"{faults[following[-1]]} ({running(self.paths)})"

    def next_places(self) -> list[int]:
        """Where the next operator may be expected: what may be missing is passed over, or not."""
        found = set[int]()
        for place in self.places:
            last = place
            while last < len(self.expected) and self.expected[last].may_miss:
                last += 1
            found.update(range(place, last + 1))
        return sorted(found)

    def _fault_of(self, place: int, operator: Operator) -> str:
        if place == len(self.expected):
            return f"runs {operator.name} after all that the model runs"
        expected = self.expected[place]
        return other_than(expected.operator, operator, expected.shapes)

    def _played_back(self, operator: Operator) -> Any:
        """What the dense model's code could read in this place."""
        for place in self.next_places():
            if place < len(self.expected):
                step, shapes = self.expected[place].step, self.expected[place].shapes
                if step.out is not None and step.operator.name == operator.name and shapes == step.operator.results:
                    return pytree.tree_map_only(Tensor, Tensor.clone, step.out)
        return None
