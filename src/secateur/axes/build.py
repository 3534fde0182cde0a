"""From a watched run to a `Network`: which classes of labels are units, which units are an axis, and what stays frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from secateur.axes.blocks import Integers
from secateur.axes.cost import Contraction, TensorSpec
from secateur.axes.labels import CONSTANT, Dims, Fixed, Labels, Reason
from secateur.axes.network import Axis, Frozen, Network, Slot
from secateur.axes.sizes import (
    Attribute,
    Comparison,
    Expression,
    Operation,
    SizeUse,
    Width,
    attributes_of,
    count_kept,
    follow,
    widths_of,
)
from secateur.axes.solve import FREE, Solution, solve
from secateur.errors import AttributeFollowError

UNUSED = Reason("no operator of this run reads a parameter of it")
MOST_LEAST = 8
"""An axis that must keep more units than this, because the code branches on how many there are, is frozen."""
STEPS = (1, 2, 4, 8, 16, 32, 64)
"""What the units that stay may have to be a multiple of."""
SINGLE = Reason("alone of its kind: an axis must keep a unit")


@dataclass(slots=True)
class Run:
    """What a frontend writes down while it watches a network.

    Attributes:
        labels: The algebra.
        tensors: Every parameter and buffer with the labels of its dims.
        contractions: `(factor, dims, where)` of each operator that multiplies and adds.
        uses: Integers of the code that are used as sizes.
        comparisons: What the code asks about such integers.
        limits: What must hold of them besides, or the framework refuses the layer.
        opened: Paths of fused modules that were opened.
        spared: For a tensor's name, the dims along which masking leaves it as it is, because its norm divides something.
    """

    labels: Labels = field(default_factory=Labels)
    tensors: dict[str, tuple[TensorSpec, Dims]] = field(default_factory=dict)
    contractions: list[tuple[int, Dims, str]] = field(default_factory=list)
    uses: list[SizeUse] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    limits: list[Comparison] = field(default_factory=list)
    opened: tuple[str, ...] = ()
    spared: dict[str, tuple[int, ...]] = field(default_factory=dict)


def build_network(run: Run) -> Network:
    """Solve a run's labels and describe the network."""
    classes = _Classes(run, solve(run.labels))
    classes.settle()
    return classes.network()


class _Classes:
    """The classes of labels that have a place in some parameter, and what became of them."""

    def __init__(self, run: Run, solution: Solution) -> None:
        self.run, self.solution = run, solution
        held = np.zeros(solution.consists.max(initial=-1) + 2, dtype=bool)
        dims = [dim for spec, dims in run.tensors.values() if spec.parameter for dim in dims]
        for dim in {self._key(dim): dim for dim in dims if not isinstance(dim, Fixed)}.values():
            held[solution.classes(dim)] = True
        self.placed = np.flatnonzero(held[:-1])
        self.coupled: list[tuple[int, tuple[int, ...]]] = []
        self.counts: dict[int, tuple[int, int]] = {}
        self.reasons = [*solution.frozen, UNUSED]
        self.reason_of = np.append(solution.reasons, FREE)
        self.reason_of[:-1][(self.reason_of[:-1] == FREE) & (solution.signature == 0)] = len(self.reasons) - 1

    def settle(self) -> None:
        """Number the free classes as units, axis by axis, and freeze axes whose sizes the code cannot follow, till none is."""
        while True:
            self.groups = self._groups()
            self.unit_of = np.full(len(self.reason_of), CONSTANT, dtype=np.int64)
            start = 0
            for group in self.groups:
                self.unit_of[group] = np.arange(start, start + group.shape[1])
                start += group.shape[1]
            self._translated: dict[tuple[bool, int], Integers | None] = {}
            self.uses = [SizeUse(self._expression(u.expression), self._whole(u.dim), u.where) for u in self.run.uses]
            self.comparisons = self._compared(self.run.comparisons)
            self.limits = self._compared(self.run.limits)
            if not self._freeze_what_cannot_follow():
                return

    def network(self) -> Network:
        """Translate everything from labels to units."""
        dims = {name: tuple(self._units(d) for d in dims) for name, (_, dims) in self.run.tensors.items()}
        return Network(
            axes=self._axes(dims),
            frozen=tuple(self._frozen()),
            tensors={name: spec for name, (spec, _) in self.run.tensors.items()},
            dims=dims,
            contractions=tuple(self._contraction(c) for c in self.run.contractions),
            uses=tuple(self.uses),
            comparisons=tuple(self.comparisons),
            limits=tuple(self.limits),
            opened=self.run.opened,
            spared=self.run.spared,
        )

    def _groups(self) -> list[Integers]:
        """Free classes by signature, and the groups that go together as `[groups, classes]`: each is an axis."""
        free = self.placed[self.reason_of[self.placed] == FREE]
        if not len(free):
            return []
        _, first, inverse, sizes = np.unique(
            self.solution.signature[free], return_index=True, return_inverse=True, return_counts=True
        )
        parts = np.split(free[np.argsort(inverse, kind="stable")], np.cumsum(sizes)[:-1])
        groups = [parts[group] for group in np.argsort(first)]
        if single := [group for group in groups if len(group) == 1]:
            self._freeze(np.concatenate(single), SINGLE)
        alone = {int(group[0]): group[None] for group in groups if len(group) > 1}
        for first_of, others in self.coupled:
            if first_of in alone and all(other in alone for other in others):
                size = alone[first_of].shape[1]
                members = [alone.pop(other).reshape(-1, size) for other in others]
                alone[first_of] = np.concatenate([alone[first_of], *members])
        return list(alone.values())

    def _freeze(self, classes: Integers, reason: Reason) -> None:
        self.reason_of[classes] = len(self.reasons)
        self.reasons.append(reason)

    def _key(self, dim: Integers) -> tuple[bool, int]:
        return self.run.labels.blocks.key(dim)

    def _units(self, dim: Integers | Fixed) -> Integers | None:
        """A dim's labels as units; None where none of them can go. Dims tied as wholes share one array."""
        if isinstance(dim, Fixed):
            return None
        key = self._key(dim)
        if key not in self._translated:
            units = self.unit_of[self.solution.classes(dim)]
            for k in range(1, len(units)):
                units[k][(units[:k] == units[k]).any(axis=0)] = CONSTANT
            units = units[(units != CONSTANT).any(axis=1)]
            self._translated[key] = units if len(units) else None
        return self._translated[key]

    def _axes(self, dims: Mapping[str, tuple[Integers | None, ...]]) -> tuple[Axis, ...]:
        owner = np.repeat(np.arange(len(self.groups)), [group.shape[1] for group in self.groups])
        slots: list[list[Slot]] = [[] for _ in self.groups]
        known: dict[int, list[tuple[int, int]]] = {}
        for tensor, units_by_dim in dims.items():
            for d, units in enumerate(units_by_dim):
                if units is None:
                    continue
                if id(units) not in known:
                    positions = np.bincount(owner[units[units != CONSTANT]])
                    found = np.flatnonzero(positions)
                    known[id(units)] = [(int(n), int(positions[n]) // self.groups[n].shape[1]) for n in found]
                for axis, count in known[id(units)]:
                    slots[axis].append(Slot(tensor, d, count))
        names = _unique_names([_module_of(found[0].tensor) for found in slots])
        return tuple(
            Axis(
                name,
                group.shape[1],
                bool(self.solution.exact[group].all()),
                tuple(found),
                *self.counts.get(int(group[0, 0]), (1, 1)),
            )
            for name, group, found in zip(names, self.groups, slots, strict=True)
        )

    def _frozen(self) -> list[Frozen]:
        found: list[Frozen] = []
        known: dict[tuple[bool, int], list[tuple[int, Reason]]] = {}
        for name, (_, dims) in self.run.tensors.items():
            for d, dim in enumerate(dims):
                if isinstance(dim, Fixed):
                    continue
                key = self._key(dim)
                if key not in known:
                    known[key] = self._reasons(dim)
                found += [Frozen(name, d, count, reason.text, reason.where) for count, reason in known[key]]
        return found

    def _reasons(self, dim: Integers) -> list[tuple[int, Reason]]:
        """How many positions of a dim stay, by the reason."""
        reasons = self.reason_of[self.solution.classes(dim)].max(axis=0)
        units = self._units(dim)
        stays = np.ones(dim.shape[1], dtype=bool) if units is None else (units == CONSTANT).all(axis=0)
        reasons = reasons[stays | (reasons != FREE)]
        counts = np.bincount(np.where(reasons == FREE, len(self.reasons) - 1, reasons))
        return [(int(counts[index]), self.reasons[index]) for index in np.flatnonzero(counts)]

    def _contraction(self, contraction: tuple[int, Dims, str]) -> Contraction:
        factor, dims, where = contraction
        units = [(self._units(dim), dim) for dim in dims]
        for translated, dim in units:
            if translated is None and not isinstance(dim, Fixed):
                factor *= dim.shape[1]
        return Contraction(factor, tuple(u for u, _ in units if u is not None), where)

    def _whole(self, dim: Integers) -> Integers:
        units = self._units(dim)
        return np.full((1, dim.shape[1]), CONSTANT) if units is None else units

    def _compared(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        return [replace(c, left=self._expression(c.left), right=self._expression(c.right)) for c in comparisons]

    def _expression(self, expression: Expression) -> Expression:
        match expression:
            case Width(dim):
                return Width(self._whole(dim))
            case Operation(symbol, left, right):
                return Operation(symbol, self._expression(left), self._expression(right))
            case _:
                return expression

    def _freeze_what_cannot_follow(self) -> bool:
        """Try each axis alone, then with those of its size that share an attribute with it; freeze what cannot follow.

        True if any was frozen, or is to go together with others from now on.
        """
        own_limits = [limit for limit in self.limits if isinstance(limit.right, int)]
        index = _UseIndex(self.uses, [*self.comparisons, *own_limits], [group.shape[1] for group in self.groups])
        settled: set[int] = set()
        for number, group in enumerate(self.groups):
            if number in settled:
                continue
            counts = self._counts(index, [number])
            alike = self._alike(index, number, settled)
            if isinstance(counts, tuple):
                self.counts[int(group[0, 0])] = counts
            elif alike and isinstance(self._counts(index, alike), tuple):
                first, *others = alike
                self.coupled.append((int(self.groups[first][0, 0]), tuple(int(self.groups[n][0, 0]) for n in others)))
                settled.update(alike)
            else:
                self._freeze(group.ravel(), Reason(str(counts)))
                settled.add(number)
        return bool(settled)

    def _alike(self, index: "_UseIndex", number: int, settled: set[int]) -> list[int]:
        """An axis and those that share an attribute with it, the smallest first; none where their units do not match."""
        axes = [n for n in (number, *index.partners(number)) if n not in settled and len(self.groups[n]) == 1]
        axes.sort(key=lambda n: (self.groups[n].shape[1], n))
        size = self.groups[axes[0]].shape[1] if axes else 1
        alike = [n for n in axes if self.groups[n].shape[1] % size == 0]
        return alike if number in alike and len(alike) > 1 else []

    def _counts(self, index: "_UseIndex", axes: Sequence[int]) -> tuple[int, int] | AttributeFollowError:
        """The fewest units of these axes together that the code can follow down to, and how many must go at a time.

        What goes wrong where it cannot follow at all.
        """
        size = self.groups[axes[0]].shape[1]
        first: AttributeFollowError | None = None
        for step in STEPS:
            for least in range(step, min(size - step, max(step, MOST_LEAST)) + 1, step):
                middle = (size + least) // 2 // step * step
                errors = (self._conflict(index, axes, kept) for kept in (size - step, least, middle))
                error = next(filter(None, errors), None)
                if error is None:
                    return least, step
                first = first or error
        return first or (1, 1)

    def _conflict(self, index: "_UseIndex", axes: Sequence[int], kept: int) -> AttributeFollowError | None:
        """What goes wrong when so many units of the first of these axes are kept, and as large a share of the others."""
        size = self.groups[axes[0]].shape[1]
        touching = [index.touching(number) for number in axes]
        uses = list(dict.fromkeys(use for found, _ in touching for use in found))
        comparisons = list(dict.fromkeys(comparison for _, found in touching for comparison in found))
        if not uses and not comparisons:
            return None
        mask = index.everything.copy()
        for number in axes:
            stay = kept * self.groups[number].shape[1] // size
            mask[index.starts[number] + stay : index.starts[number + 1]] = False
        try:
            follow(uses, count_kept(mask), comparisons)
        except AttributeFollowError as error:
            return error
        return None


class _UseIndex:
    """Which uses and comparisons an axis has a part in: they see its units, or share an attribute with one that does."""

    def __init__(self, uses: Sequence[SizeUse], comparisons: Sequence[Comparison], sizes: Sequence[int]) -> None:
        self.items: tuple[SizeUse | Comparison, ...] = (*uses, *comparisons)
        self.axis_of = np.repeat(np.arange(len(sizes)), sizes)
        self.starts = np.cumsum([0, *sizes])
        self.everything = np.ones(self.starts[-1], dtype=bool)
        self.known: dict[int, Integers] = {}
        self.by_axis: dict[int, list[int]] = {}
        self.by_attribute: dict[Attribute, list[int]] = {}
        for i, item in enumerate(self.items):
            for axis in {int(a) for dim in _dims_of(item) for a in self._axes(dim)}:
                self.by_axis.setdefault(axis, []).append(i)
            for attribute in _attributes_of(item):
                self.by_attribute.setdefault(attribute, []).append(i)

    def touching(self, axis: int) -> tuple[list[SizeUse], list[Comparison]]:
        todo = list(self.by_axis.get(axis, ()))
        chosen = set(todo)
        while todo:
            for attribute in _attributes_of(self.items[todo.pop()]):
                new = [i for i in self.by_attribute[attribute] if i not in chosen]
                chosen.update(new)
                todo.extend(new)
        items = [self.items[i] for i in sorted(chosen)]
        return [i for i in items if isinstance(i, SizeUse)], [i for i in items if isinstance(i, Comparison)]

    def partners(self, axis: int) -> list[int]:
        """The other axes whose sizes some attribute must equal that must equal the size of this one."""
        attributes = {a for i in self.by_axis.get(axis, ()) for a in _attributes_of(self.items[i])}
        items = {i for attribute in attributes for i in self.by_attribute[attribute]}
        return sorted({n for n, mine in self.by_axis.items() if not items.isdisjoint(mine)} - {axis})

    def _axes(self, dim: Integers) -> Integers:
        if id(dim) not in self.known:
            self.known[id(dim)] = np.flatnonzero(np.bincount(self.axis_of[dim[dim != CONSTANT]]))
        return self.known[id(dim)]


def _expressions_of(item: SizeUse | Comparison) -> tuple[Expression, ...]:
    return (item.expression,) if isinstance(item, SizeUse) else (item.left, item.right)


def _attributes_of(item: SizeUse | Comparison) -> set[Attribute]:
    return set().union(*map(attributes_of, _expressions_of(item)))


def _dims_of(item: SizeUse | Comparison) -> list[Integers]:
    dims = [dim for expression in _expressions_of(item) for dim in widths_of(expression)]
    return [item.dim, *dims] if isinstance(item, SizeUse) else dims


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _unique_names(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
