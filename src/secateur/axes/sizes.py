"""Integers in the user's code that hold the size of an axis, and how they follow when it shrinks.

While a network is watched, its integers remember where they come from (`Attribute`: a number kept in a module; `Width`: the size
of a dim) and what was computed from them (`Operation`). Wherever such an integer is used as a size, the run records a `SizeUse`:
*this expression must equal the number of positions that stay here*. Solving those equations gives the new attributes.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.axes.blocks import Integers
from secateur.errors import AttributeFollowError


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer kept by a module: `module.name`, or `module.name[index]`.

    Attributes:
        module: The module's path in the model; empty for the model itself.
        name: The attribute's name.
        index: Which element, where the attribute is a tuple or list; else None.
        value: Its value in the dense model.
    """

    module: str
    name: str
    index: int | None
    value: int

    def __str__(self) -> str:
        path = f"{self.module}.{self.name}" if self.module else self.name
        return path if self.index is None else f"{path}[{self.index}]"


@dataclass(frozen=True, slots=True, eq=False)
class Width:
    """The size of a dim, by what it stands for: `[factors, n]`, labels while watching, units afterwards."""

    dim: Integers


@dataclass(frozen=True, slots=True)
class Operation:
    """`left symbol right`, with integer arithmetic."""

    symbol: str
    left: "Expression"
    right: "Expression"


Expression = int | Attribute | Width | Operation

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b if b else -1,
    "%": lambda a, b: a % b if b else -1,
}


@dataclass(frozen=True, slots=True, eq=False)
class SizeUse:
    """`expression` is used where `dim` (labels or units, `[factors, n]`) has `count(dim)` positions.

    Attributes:
        expression: What the code computes.
        dim: The positions whose number it must equal.
        where: The line that uses it.
    """

    expression: Expression
    dim: Integers
    where: str


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The code asks whether `left symbol right`, and the compact model must get the same answer.

    Attributes:
        symbol: One of `COMPARISONS`.
        left: What the code compares.
        right: With what.
        outcome: The answer in the dense model.
        where: The line that asks.
        why: What the code does: it branches on the answer, or computes with a number that must not change.
    """

    symbol: str
    left: Expression
    right: Expression
    outcome: bool
    where: str
    why: str = "branches on"


Count = Callable[[Integers], int]


def count_kept(keep: np.ndarray) -> Count:
    """How many positions of a dim stay, for a mask `keep[unit]`."""
    padded = np.append(keep, True)

    def count(dim: Integers) -> int:
        return int(padded[dim].all(axis=0).sum())

    return count


def follow(uses: Sequence[SizeUse], count: Count, comparisons: Sequence[Comparison] = ()) -> dict[Attribute, int]:
    """Solve for the attributes' new values.

    Args:
        uses: The equations; every expression must come out as `count(use.dim)`.
        count: How many positions of a dim stay.
        comparisons: Questions that must be answered as before.

    Returns:
        The new value of every attribute that the equations determine.

    Raises:
        AttributeFollowError: No values satisfy all equations, or a question gets another answer; names the line.
    """
    values: dict[Attribute, int] = {}
    open_uses = list(uses)
    while open_uses:
        left = []
        for use in open_uses:
            unknown = attributes_of(use.expression) - values.keys()
            if len(unknown) > 1:
                left.append(use)
                continue
            need = count(use.dim)
            if unknown:
                solved = invert(use.expression, need, values, count)
                if solved is None:
                    _assume_unchanged(unknown, values)
                else:
                    values.update([solved])
            if evaluate(use.expression, values, count) != need:
                raise AttributeFollowError(_conflict(use, need, values, count), use.where, use)
        if len(left) == len(open_uses):
            _assume_unchanged(attributes_of(left[0].expression) - values.keys(), values)
        open_uses = left
    for comparison in comparisons:
        _check(comparison, values, count)
    return values


def _check(comparison: Comparison, values: Mapping[Attribute, int], count: Count) -> None:
    sides = (comparison.left, comparison.right)
    known = {attribute: attribute.value for side in sides for attribute in attributes_of(side)} | dict(values)
    left, right = (evaluate(side, known, count) for side in sides)
    if COMPARISONS[comparison.symbol](left, right) != comparison.outcome:
        asked = f"{describe(comparison.left)} {comparison.symbol} {describe(comparison.right)}"
        raise AttributeFollowError(
            f"the code {comparison.why} {asked}, which was {comparison.outcome} and would be "
            f"{not comparison.outcome}, with {left} and {right}; keep another number of units, or exclude the axis",
            comparison.where,
            comparison,
        )


def evaluate(expression: Expression, values: Mapping[Attribute, int], count: Count) -> int:
    """The value of an expression with attributes at `values` and dims counted by `count`."""
    match expression:
        case Attribute():
            return values[expression]
        case Width(dim):
            return count(dim)
        case Operation(symbol, left, right):
            return OPERATIONS[symbol](evaluate(left, values, count), evaluate(right, values, count))
        case _:
            return expression


def attributes_of(expression: Expression) -> set[Attribute]:
    """The attributes an expression reads."""
    match expression:
        case Attribute():
            return {expression}
        case Operation(_, left, right):
            return attributes_of(left) | attributes_of(right)
        case _:
            return set()


def widths_of(expression: Expression) -> Iterator[Integers]:
    """The dims whose sizes an expression reads."""
    if isinstance(expression, Width):
        yield expression.dim
    elif isinstance(expression, Operation):
        yield from widths_of(expression.left)
        yield from widths_of(expression.right)


def describe(expression: Expression) -> str:
    """The expression as a person would write it."""
    match expression:
        case Width(dim):
            return f"<size {dim.shape[1]}>"
        case Operation(symbol, left, right):
            return f"({describe(left)} {symbol} {describe(right)})"
        case _:
            return str(expression)


def _assume_unchanged(attributes: set[Attribute], values: dict[Attribute, int]) -> None:
    values.update((attribute, attribute.value) for attribute in attributes)


def invert(
    expression: Expression, need: int, values: Mapping[Attribute, int], count: Count
) -> tuple[Attribute, int] | None:
    """Solve `expression == need` for its one unknown attribute; None where that says nothing of it."""
    if isinstance(expression, Attribute):
        return expression, need
    if not isinstance(expression, Operation):
        return None
    symbol, left, right = expression.symbol, expression.left, expression.right
    if attributes_of(right) - values.keys():
        if attributes_of(left) - values.keys():
            return None
        known = evaluate(left, values, count)
        if symbol == "*" and known == 0:
            return None
        inverse = {"+": need - known, "-": known - need, "*": need // (known or 1), "//": known // (need or 1)}
        return invert(right, inverse[symbol], values, count) if symbol in inverse else None
    known = evaluate(right, values, count)
    if symbol == "*" and known == 0:
        return None
    inverse = {"+": need - known, "-": need + known, "*": need // (known or 1), "//": need * known}
    return invert(left, inverse[symbol], values, count) if symbol in inverse else None


def _conflict(use: SizeUse, need: int, values: Mapping[Attribute, int], count: Count) -> str:
    got = evaluate(use.expression, values, count)
    return (
        f"the size {describe(use.expression)} would be {got}, but {need} positions stay there; "
        "compute it from a tensor's shape, or keep it in an attribute of its own"
    )
