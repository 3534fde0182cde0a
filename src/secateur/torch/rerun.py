"""Runs the compact model as `trace` ran the dense one, and compares the two operator by operator."""

from collections.abc import Mapping, Sequence
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
from secateur.torch.operators import Operator, Recording, Shape, Step, WholeFunctions, operator_of, other_than
from secateur.torch.places import line_of, running
from secateur.torch.values import KnownValues


def check_operators(
    recording: Recording, predicted: Sequence[tuple[Shape | None, ...]], small: nn.Module, inputs: Inputs
) -> int:
    """The compact model must run the operators of the dense one, with the same numbers and results of the predicted shapes.

    Where the code looks at values, it is shown those of the dense model: which way a router goes is no matter of sizes.

    Args:
        recording: The dense model's run.
        predicted: The shapes of each operator's results, by `predicted_shapes`.
        small: The compact model.
        inputs: The example inputs.

    Returns:
        How many operators were compared.

    Raises:
        VerificationError: An operator differs; names it, the line, and what differs.
    """
    created = Created()
    count, fault = _compared(recording, predicted, small, inputs, created)
    created.recall()
    if fault:
        raise VerificationError(
            f"the compact model {fault}; something in the code depends on a width, although it is no size: give it a number of "
            "its own, or exclude the axis"
        )
    return count


def _compared(
    recording: Recording,
    predicted: Sequence[tuple[Shape | None, ...]],
    small: nn.Module,
    inputs: Inputs,
    created: Created,
) -> tuple[int, str]:
    """How many operators were compared, and what is wrong with the last of them; no tensor of the run outlives it."""
    copy, _, moved, values = prepared(small, inputs, meta=not recording.has_values)
    paths = {id(module): path for path, module in copy.named_modules()}
    compare = _Compare(recording, predicted, values, paths, created)
    try:
        with same_numbers(), open_paths(), compare, compare.whole:
            call(copy, moved)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises is the same fault
        failure = f"does not run as the model does: {type(error).__name__}: {error} ({line_of(error)})"
        return compare.count, compare.fault or failure
    if not compare.fault and compare.count < len(recording.steps):
        step = recording.steps[compare.count]
        return compare.count, f"never runs {step.operator.name}, which the model runs ({step.where})"
    return compare.count, compare.fault


def predicted_shapes(network: Network, recording: Recording, plan: Plan) -> list[tuple[Shape | None, ...]]:
    """The shapes of each operator's results once a plan is carried out; None for those nothing is known of."""
    mask = np.zeros(network.unit_count, dtype=bool)
    kept = plan.kept
    for axis in network.axes:
        mask[network.unit_range(axis.name)][kept.get(axis.name, slice(None))] = True
    count, known = count_kept(mask), dict[int, int]()

    def size(n: int, units: Integers | None) -> int:
        if units is None:
            return n
        if id(units) not in known:
            known[id(units)] = count(units)
        return known[id(units)]

    def predicted(step: Step) -> tuple[Shape | None, ...]:
        shapes = step.operator.results
        dims = network.results[step.first : step.first + len(shapes)]
        return tuple(
            None if units is None else tuple(map(size, shape, units)) for shape, units in zip(shapes, dims, strict=True)
        )

    return [predicted(step) for step in recording.steps]


class _Compare(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compares each operator with the recorded one in its place, up to the first that differs."""

    def __init__(
        self,
        recording: Recording,
        predicted: Sequence[tuple[Shape | None, ...]],
        values: KnownValues | None,
        paths: Mapping[int, str],
        created: Created,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording, self.predicted, self.values, self.paths = recording, predicted, values, paths
        self.created, self.count, self.fault = created, 0, ""
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
        if self.count == len(self.recording.steps):
            self.fault = f"runs {operator.name} after all that the model runs"
        else:
            self.fault = other_than(self.recording.steps[self.count].operator, operator, self.predicted[self.count])
            self.count += 1
        if self.fault:
            self.fault += f" ({running(self.paths)})"

    def _played_back(self, operator: Operator) -> Any:
        """What the dense model's code could read in this place."""
        if self.count == len(self.recording.steps):
            return None
        step = self.recording.steps[self.count]
        if (
            step.out is None
            or step.operator.name != operator.name
            or self.predicted[self.count] != step.operator.results
        ):
            return None
        return pytree.tree_map_only(Tensor, Tensor.clone, step.out)
