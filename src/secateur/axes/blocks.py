"""Dims tied as wholes: most ties are between dims as they were made, and one pair of numbers says what thousands would."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Blocks:
    """The dims that `Labels.fresh` made, and which of them stand for the same units, position by position."""

    def __init__(self) -> None:
        self._dims: list[Integers] = []
        self._numbers: dict[int, int] = {}
        self._parents: list[int] = []

    def add(self, dim: Integers) -> None:
        """A new dim, `[1, n]`, with labels that nobody else has."""
        self._numbers[id(dim)] = len(self._dims)
        self._parents.append(len(self._dims))
        self._dims.append(dim)

    def unite(self, left: Integers, right: Integers) -> bool:
        """Tie two dims; False where one of them is not whole, and nothing was done."""
        a, b = self.number(left), self.number(right)
        if a is None or b is None:
            return False
        self._parents[max(a, b)] = min(a, b)
        return True

    def number(self, dim: Integers) -> int | None:
        """The first block that this dim is tied to; None where the dim is not whole."""
        number = self._numbers.get(id(dim))
        if number is None:
            return None
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def key(self, dim: Integers) -> tuple[bool, int]:
        """Equal for dims that are known to stand for the same units."""
        number = self.number(dim)
        return (False, id(dim)) if number is None else (True, number)

    def places(self) -> tuple[int, Integers]:
        """Number the labels anew, tied dims once: how many there are, and the new one of each (the last is that of -1)."""
        sizes = np.array([dim.shape[1] for dim in self._dims], dtype=np.int64)
        roots = np.array([self.number(dim) for dim in self._dims], dtype=np.int64)
        kept = np.where(roots == np.arange(len(roots)), sizes, 0)
        shifts = (np.cumsum(kept) - kept)[roots] - (np.cumsum(sizes) - sizes)
        places = np.arange(sizes.sum()) + np.repeat(shifts, sizes)
        return int(kept.sum()), np.append(places, -1)
