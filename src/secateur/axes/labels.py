"""The algebra: integer labels that travel with the data.

Every position of every dim of every parameter gets a label of its own (`Labels.fresh`). A frontend watches a network run and
says, operator by operator, what happened to the labels: they were tied (`tie`), moved (`reshape`, `concatenate`, `take`),
split (`define`), pinned (`freeze`), crossed by a statistic (`mark_normalised`) or said to play a part (`mark`).
`secateur.axes.solve` then reads off what can be removed. Nothing here knows a framework: labels are integers, movement is
plain array movement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.axes.blocks import Blocks, Integers
from secateur.axes.kinds import Role

CONSTANT = -1
"""The label of a position that belongs to no unit: padding, or data."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something cannot be removed, and which line of the user's code says so."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A dim none of whose positions can ever go, such as a batch, a token or a pixel axis.

    Attributes:
        reason: Why not.
        order: The dim by whose order its positions are sorted, such as tokens by the expert that they go to.
    """

    reason: Reason
    order: Integers | None = field(default=None, compare=False)


Dim = Integers | Fixed
"""What a dim stands for: labels `[factors, n]` (a position stays while the units of all its factors stay), or `Fixed`."""

Dims = tuple[Dim, ...]

ONE = Fixed(Reason("a dim of size 1"))
STAYS = "tied to positions that always stay, such as padding"


@dataclass(frozen=True, slots=True)
class Definition:
    """Composite labels: `labels[i]` is there while every one of `factors[:, i]` is."""

    labels: Integers
    factors: Integers
    reason: Reason


@dataclass(slots=True)
class Labels:
    """Collects what a watched run says about labels."""

    count: int = 0
    ties: list[tuple[Integers, Integers]] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)
    frozen: list[tuple[Integers, Reason]] = field(default_factory=list)
    normalised: list[Integers] = field(default_factory=list)
    contexts: dict[int, Integers] = field(default_factory=dict)
    roles: dict[tuple[bool, int], tuple[Integers, Role]] = field(default_factory=dict)
    blocks: Blocks = field(default_factory=Blocks)
    _splits: dict[tuple[int, tuple[int, ...]], tuple[Integers, Dims]] = field(default_factory=dict)

    def fresh(self, size: int) -> Dim:
        """Labels that nobody else has, for a dim of `size` positions."""
        if size == 1:
            return ONE
        start = self.count
        self.count += size
        dim = np.arange(start, self.count, dtype=np.int64)[None]
        self.blocks.add(dim)
        return dim

    def observe(self, dims: Dims) -> None:
        """Remember that these dims met an operator; units of one axis are those that met the same ones."""
        for dim in dims:
            if isinstance(dim, np.ndarray):
                self.contexts.setdefault(id(dim), dim)

    def tie(self, left: Dim, right: Dim, reason: Reason) -> Dim:
        """Position by position, the two dims stand for the same units. Returns the dim to go on with."""
        if left is right:
            return left
        if _order(left) is not _order(right):
            for order in (_order(left), _order(right)):
                if order is not None:
                    self.freeze(order, reason)
        if isinstance(left, Fixed):
            if isinstance(right, np.ndarray):
                self.freeze(right, left.reason)
            return left
        if isinstance(right, Fixed):
            self.freeze(left, right.reason)
            return right
        if left.shape[1] != right.shape[1]:
            raise ValueError(f"cannot tie {left.shape[1]} positions to {right.shape[1]}")
        if self.blocks.unite(left, right):
            return left
        if len(left) == 1 and len(right) == 1:
            self._tie_single(left[0], right[0], reason)
        elif len(left) == 1:
            self.define(left[0], right, reason)
        elif len(right) == 1:
            self.define(right[0], left, reason)
        elif not np.array_equal(left, right):
            named = self.fresh(left.shape[1])
            assert isinstance(named, np.ndarray)
            self.define(named[0], left, reason)
            self.define(named[0], right, reason)
        return left

    def define(self, labels: Integers, factors: Integers, reason: Reason) -> None:
        """`labels[i]` (shape `[n]`) is gone as soon as one of `factors[:, i]` (shape `[m, n]`) is."""
        constant = (factors == CONSTANT).all(axis=0)
        self.freeze(labels[constant], Reason(STAYS, reason.where))
        kept = ~constant & (labels != CONSTANT)
        if (lost := ~constant & (labels == CONSTANT)).any():
            self.freeze(factors[:, lost], Reason(STAYS, reason.where))
        if kept.any():
            self.definitions.append(Definition(labels[kept], factors[:, kept], reason))

    def freeze(self, dim: Dim, reason: Reason) -> None:
        """The units behind these labels must all stay, because of `reason`, as must those that sort the positions."""
        found = dim.order if isinstance(dim, Fixed) else dim
        if found is not None and found.size:
            self.frozen.append((found.reshape(-1), reason))

    def mark_normalised(self, dim: Dim) -> None:
        """A statistic runs over this dim: its units can go, but zeroing them is not the same as removing them."""
        if isinstance(dim, np.ndarray):
            self.normalised.append(dim.reshape(-1))

    def mark(self, role: Role, dim: Dim) -> None:
        """This dim plays such a part in an operator."""
        if isinstance(dim, np.ndarray):
            key = self.blocks.key(dim)
            first, others = self.roles.get(key, (dim, role))
            self.roles[key] = first, others | role

    def concatenate(self, dims: Sequence[Dim], sizes: Sequence[int]) -> Dim:
        """The dim that lines up `dims` (of `sizes` positions) one after the other."""
        fixed = [dim for dim in dims if isinstance(dim, Fixed)]
        if len(fixed) == len(dims):
            return next((dim for dim in fixed if dim is not ONE), Fixed(Reason("joined from single positions")))
        factors = max(len(dim) for dim in dims if isinstance(dim, np.ndarray))
        out = np.full((factors, sum(sizes)), CONSTANT, dtype=np.int64)
        start = 0
        for dim, size in zip(dims, sizes, strict=True):
            if isinstance(dim, np.ndarray):
                out[: len(dim), start : start + size] = dim
            start += size
        return out

    def take(self, dim: Dim, positions: Integers, reason: Reason) -> Dim:
        """The labels at `positions` of one dim; a single one stays, because a dim of size 1 stands for no unit."""
        if isinstance(dim, Fixed):
            return dim
        if len(positions) == 1:
            self.freeze(dim[:, positions], reason)
            return ONE
        return dim[:, positions]

    def split_square(self, dim: Dim, sizes: tuple[int, ...], reason: Reason) -> Dims:
        """See one dim as several, row-major: fresh labels for each, and a definition of the old ones."""
        total = int(np.prod(sizes))
        return self.reshape((dim,), (total,), sizes, reason)

    def reshape(self, dims: Dims, shape: tuple[int, ...], out_shape: tuple[int, ...], reason: Reason) -> Dims:
        """Row-major reshape, block by block, so that untouched dims cost nothing."""
        out: list[Dim] = [ONE] * len(out_shape)
        for ins, outs in _blocks(shape, out_shape):
            if len(ins) == 1 and len(outs) == 1:
                out[outs[0]] = dims[ins[0]]
                continue
            sub = self._reshape_block(
                tuple(dims[i] for i in ins),
                tuple(shape[i] for i in ins),
                tuple(out_shape[j] for j in outs),
                reason,
            )
            for j, dim in zip(outs, sub, strict=True):
                out[j] = dim
        return tuple(out)

    def _reshape_block(self, dims: Dims, shape: tuple[int, ...], out_shape: tuple[int, ...], reason: Reason) -> Dims:
        """Reshape the labels of each factor themselves, and see along which dims of the result they vary."""
        found: list[list[Integers]] = [[] for _ in out_shape]
        fixed = next((dim for dim in dims if isinstance(dim, Fixed) and dim is not ONE), Fixed(reason))
        for axis, dim in enumerate(dims):
            for factor in dim if isinstance(dim, np.ndarray) else ():
                column = factor.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                moved = np.broadcast_to(column, shape).reshape(out_shape)
                for j, part in self._distribute(factor, moved, reason).items():
                    if isinstance(part, np.ndarray):
                        found[j].extend(part)
        return tuple(np.stack(factors) if factors else fixed for factors in found)

    def _distribute(self, source: Integers, moved: Integers, reason: Reason) -> dict[int, Dim]:
        """Which dims of the result the labels of one factor ended up in."""
        axes = [j for j in range(moved.ndim) if _varies(moved, j)]
        if not axes:
            left_out = np.setdiff1d(source, moved.reshape(-1)[:1])
            self.freeze(left_out if moved.size else source, reason)
            self.freeze(moved.reshape(-1)[:1], reason)
            return {}
        inner = moved[tuple(slice(None) if j in axes else 0 for j in range(moved.ndim))]
        if len(axes) == 1:
            return {axes[0]: np.ascontiguousarray(inner)[None]}
        key = (id(source.base if source.base is not None else source), inner.shape)
        parts = self._cached_split(key, np.ascontiguousarray(inner), reason)
        return dict(zip(axes, parts, strict=True))

    def _cached_split(self, key: tuple[int, tuple[int, ...]], labels: Integers, reason: Reason) -> Dims:
        """Split `labels[h, d, ...]` into one fresh dim for each index; the same split gives the same labels."""
        known = self._splits.get(key)
        if known is not None and np.array_equal(known[0], labels):
            return known[1]
        flat = labels.reshape(-1)
        if (flat == CONSTANT).any() or len(np.unique(flat)) != len(flat):
            self.freeze(flat, Reason(f"positions that repeat are split unevenly by {reason.text}", reason.where))
            return (Fixed(reason),) * labels.ndim
        parts = tuple(self.fresh(size) for size in labels.shape)
        self.observe(parts)
        grids = np.meshgrid(*(part[0] for part in parts if isinstance(part, np.ndarray)), indexing="ij")
        self.define(flat, np.stack([grid.reshape(-1) for grid in grids]), reason)
        self._splits[key] = (labels, parts)
        return parts

    def united(self) -> tuple["Labels", Integers]:
        """The same with dims that were tied as wholes told apart no more, and the new label of each old one."""
        count, places = self.blocks.places()
        return Labels(
            count=count,
            ties=[(places[left], places[right]) for left, right in self.ties],
            definitions=[Definition(places[d.labels], places[d.factors], d.reason) for d in self.definitions],
            frozen=[(places[frozen], reason) for frozen, reason in self.frozen],
            normalised=[places[crossed] for crossed in self.normalised],
            contexts=self._united_contexts(places),
            roles={key: (places[dim], role) for key, (dim, role) in self.roles.items()},
        ), places

    def _united_contexts(self, places: Integers) -> dict[int, Integers]:
        found = {self.blocks.key(dim): dim for dim in self.contexts.values()}
        return {id(dim): places[dim] for dim in found.values()}

    def _tie_single(self, left: Integers, right: Integers, reason: Reason) -> None:
        constant = Reason(STAYS, reason.where)
        self.freeze(left[(right == CONSTANT) & (left != CONSTANT)], constant)
        self.freeze(right[(left == CONSTANT) & (right != CONSTANT)], constant)
        both = (left != CONSTANT) & (right != CONSTANT) & (left != right)
        if both.any():
            self.ties.append((left[both], right[both]))


def _order(dim: Dim) -> Integers | None:
    """The dim by which the positions of another are sorted."""
    return dim.order if isinstance(dim, Fixed) else None


def _varies(array: Integers, axis: int) -> bool:
    if array.shape[axis] <= 1 or array.strides[axis] == 0:
        return False
    compact = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    return bool((compact != compact.take([0], axis=axis)).any())


def _blocks(shape: tuple[int, ...], out_shape: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dims that a reshape maps onto each other; dims of size 1 belong to none."""
    ins = [i for i, size in enumerate(shape) if size != 1]
    outs = [j for j, size in enumerate(out_shape) if size != 1]
    blocks, i, j = [], 0, 0
    while i < len(ins) and j < len(outs):
        left, right = [ins[i]], [outs[j]]
        before, after = shape[ins[i]], out_shape[outs[j]]
        i, j = i + 1, j + 1
        while before != after:
            if before < after:
                left.append(ins[i])
                before, i = before * shape[ins[i]], i + 1
            else:
                right.append(outs[j])
                after, j = after * out_shape[outs[j]], j + 1
        blocks.append((left, right))
    return blocks
