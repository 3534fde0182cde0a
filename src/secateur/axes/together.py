"""How far axes can shrink so that the code follows: each alone, or several together.

Code makes two widths one where it uses one number for both: an attribute that is the width of queries and of values, or
`x.reshape(b, n, c)` with the width of another tensor, so that a residual stream is as wide as all heads. Such axes shrink
together, as many units of each as match one unit of the smallest.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from secateur.axes.blocks import Integers
from secateur.axes.labels import CONSTANT
from secateur.axes.sizes import (
    Attribute,
    Comparison,
    Expression,
    SizeUse,
    attributes_of,
    count_kept,
    follow,
    widths_of,
)
from secateur.errors import AttributeFollowError

Item = SizeUse | Comparison

MOST_LEAST = 8
"""Up to here every number is tried as the fewest units; above, it is taken that what works with some works with more."""
MOST_TRIED = 32
"""So many numbers of units are tried, where some cannot be."""
STEPS = (1, 2, 4, 8, 16, 32, 64)
"""What the units that stay may have to be a multiple of."""


class Followers:
    """What the code asks of the sizes of axes, tried out.

    Args:
        items: The equations and questions of the code, in units.
        sizes: How many units each axis has; units are numbered axis by axis.
    """

    def __init__(self, items: Sequence[Item], sizes: Sequence[int]) -> None:
        self.items, self.sizes = items, sizes
        self._starts = np.cumsum([0, *sizes])
        self._everything = np.ones(self._starts[-1], dtype=bool)
        self._axis_of = np.repeat(np.arange(len(sizes)), sizes)
        self._known: dict[int, list[int]] = {}
        self._touching: dict[int, frozenset[int]] = {}
        self._attributes = [_attributes(item) for item in items]
        self._number_of = {id(item): i for i, item in enumerate(items)}
        self._by_axis: dict[int, list[int]] = {}
        self._by_attribute: dict[Attribute, list[int]] = {}
        for i, item in enumerate(items):
            for axis in self._axes(item):
                self._by_axis.setdefault(axis, []).append(i)
            for attribute in self._attributes[i]:
                self._by_attribute.setdefault(attribute, []).append(i)

    def counts(self, axes: Sequence[int], size: int) -> tuple[int, int] | AttributeFollowError:
        """The fewest units that the code follows down to, and how many must go at a time; what goes wrong where it cannot.

        Args:
            axes: What shrinks together.
            size: How many units they have together; a divisor of the size of each.
        """
        first: AttributeFollowError | None = None
        for step in STEPS:
            for least in self._leasts(axes, size, step):
                middle = (size + least) // 2 // step * step
                errors = (self._conflict(axes, size, kept) for kept in (size - step, least, middle))
                error = next(filter(None, errors), None)
                if error is None and first is not None:  # something is asked of this number: try them all
                    every = range(least, min(size, least + MOST_TRIED * step), step)
                    error = next(filter(None, (self._conflict(axes, size, kept) for kept in every)), None)
                if error is None:
                    return least, step
                first = first or error
        return first or (1, 1)

    def _leasts(self, axes: Sequence[int], size: int, step: int) -> Iterator[int]:
        """What may be the fewest units: small numbers, then the one below which the code cannot follow."""
        few = min(size - step, max(step, MOST_LEAST))
        yield from range(step, few + 1, step)
        low, high = few // step, size // step - (size % step == 0)
        if step <= few and low < high and self._conflict(axes, size, size - step) is None:

            def follows(number: int) -> bool:
                return self._conflict(axes, size, number * step) is None

            yield step * (low + bisect_left(range(low, high), True, key=follows))

    def together(self, axis: int, free: Sequence[bool]) -> tuple[list[int], int] | None:
        """The axes with which one can shrink that cannot alone, itself first, and how many units they have together.

        The finest division that works: an axis of 768 goes with 64 positions of each of 12 heads, rather than with the heads.

        Args:
            axis: Which cannot alone.
            free: For each axis whether it may be taken.
        """
        near = {n for i in self._items_of(axis) for n in self._axes(self.items[i])}
        sizes = sorted({self.sizes[n] for n in near if self.sizes[axis] % self.sizes[n] == 0}, reverse=True)
        for size, by_attribute in product(sizes, (False, True)):  # where heads are as many as wide, either may be meant
            members = [axis]
            while error := self._conflict(members, size, size // 2):
                asked = self._asked(error)
                more = [n for n in asked if free[n] and n not in members and self.sizes[n] % size == 0]
                if not more:
                    break
                members.append(min(more, key=lambda n: (asked[n] != by_attribute, self.sizes[n] != size, n)))
            if error is None and len(members) > 1 and isinstance(self.counts(members, size), tuple):
                return members, size
        return None

    def _asked(self, error: AttributeFollowError) -> dict[int, bool]:
        """The axes that have a part in what went wrong, and whether it is by an attribute only."""
        item = self.items[self._number_of[id(error.item)]]
        own = self._axes(item)
        others = {n for a in _attributes(item) for i in self._by_attribute[a] for n in self._axes(self.items[i])}
        return {n: n not in own for n in sorted({*own, *others})}

    def _conflict(self, axes: Sequence[int], size: int, kept: int) -> AttributeFollowError | None:
        """What goes wrong when so many of `size` are kept."""
        touched = [self.items[i] for i in sorted(frozenset().union(*map(self._items_of, axes)))]
        if not touched:
            return None
        mask = self._everything.copy()
        for axis in axes:
            mask[self._starts[axis] + kept * (self.sizes[axis] // size) : self._starts[axis + 1]] = False
        uses = [item for item in touched if isinstance(item, SizeUse)]
        try:
            follow(uses, count_kept(mask), [item for item in touched if isinstance(item, Comparison)])
        except AttributeFollowError as error:
            return error
        return None

    def _items_of(self, axis: int) -> frozenset[int]:
        """The items that see units of an axis, and those that share an attribute with one that does."""
        if axis not in self._touching:
            todo = list(self._by_axis.get(axis, ()))
            chosen = set(todo)
            while todo:
                for attribute in self._attributes[todo.pop()]:
                    new = [i for i in self._by_attribute[attribute] if i not in chosen]
                    chosen.update(new)
                    todo.extend(new)
            self._touching[axis] = frozenset(chosen)
        return self._touching[axis]

    def _axes(self, item: Item) -> list[int]:
        return sorted({axis for dim in _dims(item) for axis in self._axes_of_dim(dim)})

    def _axes_of_dim(self, dim: Integers) -> list[int]:
        if id(dim) not in self._known:
            self._known[id(dim)] = np.flatnonzero(np.bincount(self._axis_of[dim[dim != CONSTANT]])).tolist()
        return self._known[id(dim)]


def undecided(questions: Sequence[Comparison], uses: Sequence[SizeUse]) -> list[Comparison]:
    """The questions whose answers can change: those about widths, or about attributes that follow some width."""
    following = set().union(*map(_attributes, uses))
    return [asked for asked in questions if _dims(asked) or not following.isdisjoint(_attributes(asked))]


def _expressions(item: Item) -> tuple[Expression, ...]:
    return (item.expression,) if isinstance(item, SizeUse) else (item.left, item.right)


def _attributes(item: Item) -> set[Attribute]:
    return set().union(*map(attributes_of, _expressions(item)))


def _dims(item: Item) -> list[Integers]:
    dims = [dim for expression in _expressions(item) for dim in widths_of(expression)]
    return [item.dim, *dims] if isinstance(item, SizeUse) else dims
