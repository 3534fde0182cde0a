"""What a network costs, as a function of how many units each axis keeps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from secateur.axes.blocks import Integers


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and storage of a parameter or buffer."""

    shape: tuple[int, ...]
    itemsize: int
    parameter: bool


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """One operator that multiplies and adds: it takes `factor` times the product of its dims' kept sizes multiply-adds.

    Attributes:
        factor: The product of the sizes that never change (batch, pixels, tokens, kernel).
        dims: The dims that may shrink, as units `[factors, n]`.
        where: The module and line it belongs to.
        units: The units without any of which it does not run: that of the list's entry that runs it.
    """

    factor: int
    dims: tuple[Integers, ...]
    where: str
    units: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Numbers in its parameters; tied ones once.
        macs: Multiply-adds of one run on the example inputs (one multiply-add counts 1), contractions only.
        bytes: Bytes of parameters and buffers.
    """

    parameters: int
    macs: int
    bytes: int


class CostModel:
    """Costs as sums of products of counts: `factor * prod over dims of (sum over segments of positions * prod kept)`.

    Everything is laid out as arrays, because an allocator asks for the cost hundreds of times. Of units that are entries of lists
    one may cost more than another; so it matters which of them go, and each has a segment of its own.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        tensors: Mapping[str, TensorSpec],
        dims: Mapping[str, tuple[Integers | None, ...]],
        contractions: Sequence[Contraction],
        entries: Collection[int],
    ) -> None:
        self._sizes, self._entries = np.array(sizes, dtype=np.int64), np.array(sorted(entries), dtype=np.int64)
        self._axis_of = np.append(np.repeat(np.arange(len(self._sizes)), self._sizes), -1)
        # Dim 0 has one segment with no axis and one position: it stands for dims that never shrink.
        self._segments: list[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = [(0, 1, (), ())]
        self._known: dict[int, int] = {}
        specs = tensors.values()
        rows = [[self._dim(d) for d in dims[name] if d is not None] for name in tensors]
        rows += [[self._dim(d) for d in contraction.dims] for contraction in contractions]
        fixed = [
            prod(n for n, d in zip(spec.shape, dims[name], strict=True) if d is None) for name, spec in tensors.items()
        ]
        factors = [*fixed, *(contraction.factor for contraction in contractions)]
        self._products = _padded(rows, 0)
        owner, positions, axes, needs = zip(*self._segments, strict=True)
        self._starts = np.unique(np.array(owner), return_index=True)[1]
        self._axes = _padded([list(a) for a in axes], len(self._sizes))
        self._needs = _padded([list(units) for units in needs], -1)
        self._runs_for = _padded([[] for _ in tensors] + [list(contraction.units) for contraction in contractions], -1)
        # A second, different unit of the same axis (an outer product of an axis with itself) has one choice less.
        self._already = _padded([[a[:i].count(axis) for i, axis in enumerate(a)] for a in axes], 0)
        self._tensors = len(rows) - len(contractions)
        self._rows = {name: row for row, name in enumerate(tensors)}
        self._parameters = np.array([spec.parameter for spec in specs], dtype=np.int64)
        self._itemsizes = np.array([spec.itemsize for spec in specs], dtype=np.int64)
        # Python's integers where the dense network could overflow: costs never rise above it.
        self._positions, self._factors = np.array(positions, dtype=object), np.array(factors, dtype=object)
        dense = self.cost(self._sizes)
        if max(dense.macs, dense.bytes) < 2**62:
            self._positions, self._factors = self._positions.astype(np.int64), self._factors.astype(np.int64)

    def cost(
        self,
        kept: NDArray[np.int64],
        tensors: Collection[str] = (),
        contractions: Collection[int] = (),
        entries: Collection[int] = (),
    ) -> Cost:
        """The cost with `kept[axis]` units left of each axis, without these tensors, contractions and units of lists."""
        units = (np.append(kept, 1)[self._axes] - self._already).prod(axis=1)
        gone = np.array(sorted(entries), dtype=np.int64)
        if len(gone):
            units[np.isin(self._needs, gone).any(axis=1)] = 0
        counts = np.add.reduceat(self._positions * units, self._starts)
        numbers = self._factors * counts[self._products].prod(axis=1)
        if len(gone):
            numbers[np.isin(self._runs_for, gone).any(axis=1)] = 0
        numbers[[self._rows[name] for name in tensors]] = 0
        numbers[[self._tensors + number for number in contractions]] = 0
        stored, macs = numbers[: self._tensors], numbers[self._tensors :]
        return Cost(int((stored * self._parameters).sum()), int(macs.sum()), int((stored * self._itemsizes).sum()))

    def _dim(self, units: Integers) -> int:
        """The number of a dim; its segments are listed when it is first met."""
        if id(units) not in self._known:
            index = self._known[id(units)] = len(self._known) + 1
            whole = np.isin(units, self._entries)
            axes = np.sort(np.where(whole, -1, self._axis_of[units]), axis=0)
            needs = np.sort(np.where(whole, units, -1), axis=0)
            number = np.zeros(axes.shape[1], dtype=np.int64)
            for row in (*axes, *needs):
                # Numbered anew after each factor, because powers of the number of axes overflow.
                number = np.unique(number * (int(row.max()) + 2) + row + 1, return_inverse=True)[1]
            _, first, positions = np.unique(number, return_index=True, return_counts=True)
            for at, n in zip(first.tolist(), positions.tolist(), strict=True):
                members = tuple(sorted(axis for axis in axes[:, at].tolist() if axis >= 0))
                choices = prod(int(self._sizes[a]) - members[:i].count(a) for i, a in enumerate(members))
                self._segments.append((index, n // choices, members, tuple(u for u in needs[:, at].tolist() if u >= 0)))
        return self._known[id(units)]


def _padded(rows: list[list[int]], filler: int) -> Integers:
    width = max([1, *map(len, rows)])
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64).reshape(len(rows), width)
