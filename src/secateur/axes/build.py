"""From a watched run to a `Network`: which classes of labels are units, which units are an axis, and what stays frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from secateur.axes.cost import Contraction, TensorSpec
from secateur.axes.labels import CONSTANT, Dims, Fixed, Integers, Labels, Reason
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
        opened: Paths of fused modules that were opened.
        spared: For a tensor's name, the dims along which masking leaves it as it is, because its norm divides something.
    """

    labels: Labels = field(default_factory=Labels)
    tensors: dict[str, tuple[TensorSpec, Dims]] = field(default_factory=dict)
    contractions: list[tuple[int, Dims, str]] = field(default_factory=list)
    uses: list[SizeUse] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    opened: tuple[str, ...] = ()
    spared: dict[str, tuple[int, ...]] = field(default_factory=dict)


def build_network(run: Run) -> Network:
    """Solve a run's labels and describe the network."""
    classes = _Classes(run, solve(run.labels))
    while True:
        network = classes.network()
        if not classes.freeze_what_cannot_follow(network):
            return network


class _Classes:
    """The classes of labels that have a place in some parameter, and what became of them."""

    def __init__(self, run: Run, solution: Solution) -> None:
        self.run, self.solution = run, solution
        held = [d[0] for spec, dims in run.tensors.values() if spec.parameter for d in dims if not isinstance(d, Fixed)]
        labels = np.concatenate(held) if held else np.zeros(0, dtype=np.int64)
        held_classes = np.zeros(run.labels.count + 1, dtype=bool)
        held_classes[solution.primitive[:, labels]] = True
        self.placed = np.flatnonzero(held_classes[:-1])
        self.reasons = [*(reason for _, reason in run.labels.frozen), UNUSED]
        self.reason_of = np.append(solution.reasons, FREE)
        self.reason_of[:-1][(self.reason_of[:-1] == FREE) & (solution.signature == 0)] = len(self.reasons) - 1
        self.free = self.reason_of[self.placed] == FREE

    def network(self) -> Network:
        """Number the free classes as units, axis by axis, and translate everything from labels to units."""
        groups = self._groups()
        unit_of = np.full(self.run.labels.count + 1, CONSTANT, dtype=np.int64)
        if groups:
            unit_of[np.concatenate(groups)] = np.arange(sum(map(len, groups)))
        self.unit_of, self.groups, self._translated = unit_of, groups, {}
        dims = {name: tuple(self._units(d) for d in dims) for name, (_, dims) in self.run.tensors.items()}
        return Network(
            axes=self._axes(dims),
            frozen=tuple(self._frozen()),
            tensors={name: spec for name, (spec, _) in self.run.tensors.items()},
            dims=dims,
            contractions=tuple(self._contraction(c) for c in self.run.contractions),
            uses=tuple(SizeUse(self._expression(u.expression), self._whole(u.dim), u.where) for u in self.run.uses),
            comparisons=tuple(
                replace(c, left=self._expression(c.left), right=self._expression(c.right)) for c in self.run.comparisons
            ),
            opened=self.run.opened,
            spared=self.run.spared,
        )

    def _groups(self) -> list[Integers]:
        """Free classes by signature; each group is an axis, ordered by its first class."""
        free = self.placed[self.free]
        if not len(free):
            return []
        _, first, inverse = np.unique(self.solution.signature[free], return_index=True, return_inverse=True)
        groups = [free[inverse == group] for group in np.argsort(first)]
        for group in groups:
            if len(group) == 1:
                self._freeze(group, SINGLE)
        return [group for group in groups if len(group) > 1]

    def _freeze(self, classes: Integers, reason: Reason) -> None:
        self.free &= ~np.isin(self.placed, classes)
        self.reason_of[classes] = len(self.reasons)
        self.reasons.append(reason)

    def _units(self, dim: Integers | Fixed) -> Integers | None:
        """A dim's labels as units; None where none of them can go."""
        if isinstance(dim, Fixed):
            return None
        if id(dim) not in self._translated:
            classes = np.concatenate(
                [np.where(row == CONSTANT, CONSTANT, self.solution.primitive[:, row]) for row in dim]
            )
            units = self.unit_of[classes]
            for k in range(1, len(units)):
                units[k][(units[:k] == units[k]).any(axis=0)] = CONSTANT
            units = units[(units != CONSTANT).any(axis=1)]
            self._translated[id(dim)] = units if len(units) else None
        return self._translated[id(dim)]

    _translated: dict[int, Integers | None]

    def _axes(self, dims: Mapping[str, tuple[Integers | None, ...]]) -> tuple[Axis, ...]:
        owner = np.repeat(np.arange(len(self.groups)), [len(group) for group in self.groups])
        slots: list[list[Slot]] = [[] for _ in self.groups]
        for tensor, units_by_dim in dims.items():
            for d, units in enumerate(units_by_dim):
                if units is None:
                    continue
                positions = np.bincount(owner[units[units != CONSTANT]])
                for axis in np.flatnonzero(positions):
                    slots[axis].append(Slot(tensor, d, int(positions[axis]) // len(self.groups[axis])))
        names = _unique_names([_module_of(found[0].tensor) for found in slots])
        return tuple(
            Axis(name, len(group), bool(self.solution.exact[group].all()), tuple(found))
            for name, group, found in zip(names, self.groups, slots, strict=True)
        )

    def _frozen(self) -> list[Frozen]:
        found: list[Frozen] = []
        for name, (_, dims) in self.run.tensors.items():
            for d, dim in enumerate(dims):
                if isinstance(dim, Fixed):
                    continue
                classes = np.concatenate([self.solution.primitive[:, row] for row in dim])
                reasons = np.where(classes == CONSTANT, FREE, self.reason_of[classes]).max(axis=0)
                units = self._units(dim)
                stays = np.ones(dim.shape[1], dtype=bool) if units is None else (units == CONSTANT).all(axis=0)
                reasons = reasons[stays | (reasons != FREE)]
                counts = np.bincount(np.where(reasons == FREE, len(self.reasons) - 1, reasons))
                for index in np.flatnonzero(counts):
                    reason = self.reasons[index]
                    found.append(Frozen(name, d, int(counts[index]), reason.text, reason.where))
        return found

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

    def _expression(self, expression: Expression) -> Expression:
        match expression:
            case Width(dim):
                return Width(self._whole(dim))
            case Operation(symbol, left, right):
                return Operation(symbol, self._expression(left), self._expression(right))
            case _:
                return expression

    def freeze_what_cannot_follow(self, network: Network) -> bool:
        """Try each axis alone, then all together; freeze those whose sizes the code cannot follow. True if any was."""
        index = _UseIndex(network)
        frozen = False
        for number, (axis, group) in enumerate(zip(network.axes, self.groups, strict=True)):
            uses, comparisons = index.touching(number)
            for removed in (1, axis.size // 2, axis.size - 1):
                mask = np.ones(network.unit_count, dtype=bool)
                mask[network.unit_range(axis.name)][-removed:] = False
                if (error := _conflict(uses, comparisons, mask)) is not None:
                    self._freeze(group, Reason(str(error)))
                    frozen = True
                    break
        return frozen


def _conflict(
    uses: Sequence[SizeUse], comparisons: Sequence[Comparison], mask: np.ndarray
) -> AttributeFollowError | None:
    try:
        follow(uses, count_kept(mask), comparisons)
    except AttributeFollowError as error:
        return error
    return None


class _UseIndex:
    """Which uses and comparisons an axis has a part in: they see its units, or share an attribute with one that does."""

    def __init__(self, network: Network) -> None:
        self.items: tuple[SizeUse | Comparison, ...] = (*network.uses, *network.comparisons)
        self.axis_of = np.repeat(np.arange(len(network.axes)), [axis.size for axis in network.axes])
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
