"""`Size`: an integer that remembers where it comes from, through arithmetic and comparisons."""

import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.axes import Attribute, Expression, Operation
from secateur.torch.settings import convert_integers

Compared = Callable[[str, Expression, Expression, bool], None]


@dataclass(slots=True)
class Tracker:
    """Where `Size` reports what happens to it outside torch.

    Attributes:
        value_used: Called when the number itself enters a computation, as in `size ** -0.5`.
        compared: Called with `(symbol, left, right, outcome)` when the user's code compares it.
    """

    value_used: Callable[[Expression], None]
    compared: Compared


class Size(int):
    """An integer with its origin."""

    expression: Expression
    tracker: Tracker

    def __new__(cls, value: int, expression: Expression, tracker: Tracker) -> "Size":
        """A `Size` equal to `value`."""
        size = super().__new__(cls, value)
        size.expression, size.tracker = expression, tracker
        return size

    __hash__ = int.__hash__

    def __neg__(self) -> int:
        return 0 - self

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __format__(self, form: str) -> str:
        self.tracker.value_used(self.expression)
        return format(self._plain(), form)

    def __str__(self) -> str:
        return format(self)

    def __deepcopy__(self, memo: object) -> "Size":
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.tracker.value_used(self.expression)
        return int, (self._plain(),)

    def _plain(self) -> int:
        return int.__add__(self, 0)


def _expression(value: int) -> Expression:
    return value.expression if isinstance(value, Size) else int(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _arithmetic(symbol: str, function: Callable[[int, int], int], swapped: bool) -> Callable[[Size, Any], Any]:
    """`size symbol other` (or swapped): another `Size` if both are integers, else the number itself is used."""

    def method(self: Size, other: Any) -> Any:
        if not _is_integer(other):
            self.tracker.value_used(self.expression)
            plain = getattr(int, f"__{'r' if swapped else ''}{function.__name__.strip('_')}__")
            return plain(self._plain(), other)
        pair = (other, self) if swapped else (self, other)
        left, right = (value._plain() if isinstance(value, Size) else value for value in pair)
        return Size(function(left, right), Operation(symbol, *map(_expression, pair)), self.tracker)

    return method


def _comparison(symbol: str, function: Callable[[Any, Any], bool]) -> Callable[[Size, Any], Any]:
    """`size symbol other`: the outcome must be the same for the compact model."""

    def method(self: Size, other: Any) -> Any:
        if not _is_integer(other):
            if isinstance(other, float):
                self.tracker.value_used(self.expression)
            return getattr(int, f"__{function.__name__}__")(self, other)
        plain = other._plain() if isinstance(other, Size) else other
        outcome = function(self._plain(), plain)
        self.tracker.compared(symbol, self.expression, _expression(other), outcome)
        return outcome

    return method


def _as_number(name: str) -> Callable[..., Any]:
    """A method of `int` for which only the value counts."""

    def method(self: Size, *others: Any) -> Any:
        self.tracker.value_used(self.expression)
        return getattr(self._plain(), name)(*others)

    return method


for _symbol, _function in (
    ("+", operator.add),
    ("-", operator.sub),
    ("*", operator.mul),
    ("//", operator.floordiv),
    ("%", operator.mod),
):
    setattr(Size, f"__{_function.__name__}__", _arithmetic(_symbol, _function, swapped=False))
    setattr(Size, f"__r{_function.__name__}__", _arithmetic(_symbol, _function, swapped=True))
for _symbol, _function in (
    ("==", operator.eq),
    ("!=", operator.ne),
    ("<", operator.lt),
    ("<=", operator.le),
    (">", operator.gt),
    (">=", operator.ge),
):
    setattr(Size, f"__{_function.__name__}__", _comparison(_symbol, _function))
for _name in ("truediv", "pow", "divmod", "and", "or", "xor", "lshift", "rshift"):
    setattr(Size, f"__{_name}__", _as_number(f"__{_name}__"))
    setattr(Size, f"__r{_name}__", _as_number(f"__r{_name}__"))
for _name in ("float", "int", "abs", "invert", "round", "trunc", "floor", "ceil"):
    setattr(Size, f"__{_name}__", _as_number(f"__{_name}__"))


def remember_attributes(model: nn.Module, tracker: Tracker, state: Mapping[str, Set[str]]) -> None:
    """Replace the integers that the modules of `model` keep by integers that remember their place.

    Args:
        model: The copy that is to be watched.
        tracker: What they report to.
        state: Attributes that stay as they are: by the path of a module, their names.
    """
    for path, module in model.named_modules():

        def size(name: str, index: int | None, value: int, path: str = path) -> Size:
            return Size(int(value), Attribute(path, name, index, int(value)), tracker)

        convert_integers(module, size, skip=state.get(path, frozenset()))
