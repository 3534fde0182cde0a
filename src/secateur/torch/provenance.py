"""Integers that remember where they come from, while a model runs.

`remember_attributes` replaces the integers of a (copied) model's modules by `Size`, which survives `+ - * //`; `WatchSizes` makes
tensor shapes return `Size` too and tells, for each call into torch, which of its integers the user computed from what.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.axes import Attribute, Dims, Expression, Integers, Operation, Width

TAKES_SIZES = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "view reshape expand broadcast_to unflatten zeros ones full empty rand randn new_zeros new_ones new_full "
        "new_empty split split_with_sizes narrow __getitem__ __setitem__ repeat tile layer_norm rms_norm group_norm "
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d unsafe_split as_strided zero_pad"
    ).split()
)
"""Functions whose integer arguments are sizes that the caller chose; all others compute theirs from the tensors."""

_SHAPE: Any = Tensor.shape.__get__  # type: ignore[attr-defined]

Observer = Callable[[Expression], None]


class Size(int):
    """An integer with its origin."""

    expression: Expression
    tracker: "Tracker"

    def __new__(cls, value: int, expression: Expression, tracker: "Tracker") -> "Size":
        """A `Size` equal to `value`."""
        size = super().__new__(cls, value)
        size.expression, size.tracker = expression, tracker
        return size

    def _combined(self, symbol: str, other: object, value: Any, swapped: bool = False) -> Any:
        if not isinstance(other, int) or isinstance(other, bool) or value is NotImplemented:
            self.tracker.value_used(self.expression)
            return value
        theirs = other.expression if isinstance(other, Size) else int(other)
        pair = (theirs, self.expression) if swapped else (self.expression, theirs)
        return Size(value, Operation(symbol, *pair), self.tracker)

    def __add__(self, other: Any) -> Any:
        return self._combined("+", other, int.__add__(self, other))

    def __radd__(self, other: Any) -> Any:
        return self._combined("+", other, int.__radd__(self, other), swapped=True)

    def __sub__(self, other: Any) -> Any:
        return self._combined("-", other, int.__sub__(self, other))

    def __rsub__(self, other: Any) -> Any:
        return self._combined("-", other, int.__rsub__(self, other), swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._combined("*", other, int.__mul__(self, other))

    def __rmul__(self, other: Any) -> Any:
        return self._combined("*", other, int.__rmul__(self, other), swapped=True)

    def __floordiv__(self, other: Any) -> Any:
        return self._combined("//", other, int.__floordiv__(self, other))

    def __rfloordiv__(self, other: Any) -> Any:
        return self._combined("//", other, int.__rfloordiv__(self, other), swapped=True)

    def __neg__(self) -> Any:
        return self._combined("-", 0, -int(self), swapped=True)

    def __truediv__(self, other: Any) -> Any:
        self.tracker.value_used(self.expression)
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.tracker.value_used(self.expression)
        return other / int(self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.tracker.value_used(self.expression)
        return pow(int(self), other, modulo)

    def __float__(self) -> float:
        self.tracker.value_used(self.expression)
        return float(int(self))

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and isinstance(other, Size):
            self.tracker.compared_equal(self.expression, other.expression)
        return equal is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


@dataclass(slots=True)
class Tracker:
    """Where `Size` reports what happens to it outside torch.

    Attributes:
        value_used: Called when the number itself enters a computation, as in `size ** -0.5`.
        widths_compared: Called when the size of a dim was found equal to an expression of attributes.
    """

    value_used: Observer
    widths_compared: Callable[[Expression, Width], None]

    def compared_equal(self, left: Expression, right: Expression) -> None:
        """An equality check of the user's code: the two must stay equal, where one is a dim's size."""
        if isinstance(left, Width) and not isinstance(right, Width):
            self.widths_compared(right, left)
        elif isinstance(right, Width) and not isinstance(left, Width):
            self.widths_compared(left, right)


def remember_attributes(model: nn.Module, tracker: Tracker) -> None:
    """Replace the integers that the modules of `model` keep by integers that remember their place."""
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if type(value) is int:
                vars(module)[name] = Size(value, Attribute(path, name, None, value), tracker)
            elif type(value) in (tuple, list) and value and all(type(item) is int for item in value):
                vars(module)[name] = type(value)(
                    Size(item, Attribute(path, name, index, item), tracker) for index, item in enumerate(value)
                )


@dataclass(slots=True)
class Frame:
    """One call into torch: the integers that the caller handed over, in order."""

    name: str
    numbers: list[int]

    def take(self, value: int) -> Expression | None:
        """Where `value` came from: an expression, a plain number of the caller's, or None: torch computed it itself."""
        if self.name not in TAKES_SIZES:
            return None
        for i, number in enumerate(self.numbers):
            if int(number) == value:
                del self.numbers[: i + 1]
                return number.expression if isinstance(number, Size) else value
        return None


class WatchSizes(TorchFunctionMode):
    """Tags shapes, and keeps the frame of the call that is under way.

    Args:
        dims_of: What each dim of a tensor stands for.
        before_call: Called with the function's name and arguments before each call.
        tracker: Where the tagged sizes report to.
    """

    def __init__(
        self,
        dims_of: Callable[[Tensor], Dims],
        before_call: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
        tracker: Tracker,
    ) -> None:
        super().__init__()
        self.dims_of, self.before_call, self.tracker = dims_of, before_call, tracker
        self.frames: list[Frame] = []

    def take(self, value: int) -> Expression | None:
        """Where a size that the current operator received came from; None where torch computed it."""
        return self.frames[-1].take(value) if self.frames else value

    @property
    def name(self) -> str:
        """The function that is being called."""
        return self.frames[-1].name if self.frames else ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == _SHAPE:
            return self._tagged(args[0], func(*args))
        if name == "size":
            result = func(*args, **kwargs)
            whole = isinstance(result, torch.Size)
            return self._tagged(args[0], result) if whole else self._tagged_one(args, kwargs, result)
        self.frames.append(Frame(name, list(_numbers((*args, *kwargs.values())))))
        try:
            self.before_call(name, args, kwargs)
            return func(*args, **kwargs)
        finally:
            self.frames.pop()

    def _tagged(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        dims = self.dims_of(tensor)
        return torch.Size([self._size(n, dim) for n, dim in zip(shape, dims, strict=True)])

    def _tagged_one(self, args: Any, kwargs: Any, value: int) -> int:
        index = kwargs["dim"] if "dim" in kwargs else args[1]
        return self._size(value, self.dims_of(args[0])[int(index)])

    def _size(self, value: int, dim: object) -> int:
        return Size(value, Width(dim), self.tracker) if isinstance(dim, np.ndarray) else value


def _numbers(values: Any) -> Iterator[int]:
    """All integers in nested arguments, in order."""
    for value in values:
        if isinstance(value, (bool, Tensor)):
            continue
        if isinstance(value, int):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _numbers(value)
        elif isinstance(value, slice):
            yield from _numbers((value.start, value.stop))


def widths_of(expression: Expression) -> Iterator[Integers]:
    """The dims whose sizes an expression reads."""
    if isinstance(expression, Width):
        yield expression.dim
    elif isinstance(expression, Operation):
        yield from widths_of(expression.left)
        yield from widths_of(expression.right)
