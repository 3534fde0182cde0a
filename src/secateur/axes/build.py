"""From a watched run to a `Network`: which classes of labels are units, which units are an axis, and what stays frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.axes.labels import CONSTANT, Dims, Fixed, Integers, Labels, Reason
from secateur.axes.network import Axis, Contraction, Frozen, Network, Slot, TensorSpec
from secateur.axes.sizes import (
    Attribute,
    Expression,
    Operation,
    SizeUse,
    Width,
    attributes_of,
    count_kept,
    follow,
)
from secateur.axes.solve import FREE, Solution, solve
from secateur.errors import AttributeFollowError

UNUSED = Reason("no operator of this run reads it")
SINGLE = Reason("alone of its kind: an axis must keep a unit")


@dataclass(slots=True)
class Run:
    """What a frontend writes down while it watches a network.

    Attributes:
        labels: The algebra.
        tensors: Every parameter and buffer with the labels of its dims.
        contractions: `(factor, dims, where)` of each operator that multiplies and adds.
        uses: Integers of the code that are used as sizes.
        opened: Paths of fused modules that were opened.
        spared: For a tensor's name, the dims along which masking leaves it as it is, because its norm divides something.
    """

    labels: Labels = field(default_factory=Labels)
    tensors: dict[str, tuple[TensorSpec, Dims]] = field(default_factory=dict)
    contractions: list[tuple[int, Dims, str]] = field(default_factory=list)
    uses: list[SizeUse] = field(default_factory=list)
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
    """The classes of labels that have a place in some tensor, and what became of them."""

    def __init__(self, run: Run, solution: Solution) -> None:
        self.run, self.solution = run, solution
        self.reasons: dict[int, Reason] = {}
        dims = [dim for _, dims in run.tensors.values() for dim in dims if not isinstance(dim, Fixed)]
        labels = np.concatenate([dim[0] for dim in dims]) if dims else np.zeros(0, dtype=np.int64)
        found = np.unique(solution.primitive[:, labels])
        self.placed = found[found != CONSTANT]
        reasons = solution.reasons[self.placed]
        self.free = (reasons == FREE) & (solution.signature[self.placed] != 0)

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
            uses=tuple(self._size_uses()),
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
        self.reasons.update((int(c), reason) for c in classes)

    def _units(self, dim: Integers | Fixed) -> Integers | None:
        """A dim's labels as units; None where none of them can go."""
        if isinstance(dim, Fixed):
            return None
        if id(dim) not in self._translated:
            classes = np.concatenate([np.where(row == CONSTANT, CONSTANT, self.solution.primitive[:, row]) for row in dim])
            units = self.unit_of[classes]
            for k in range(1, len(units)):
                units[k][(units[:k] == units[k]).any(axis=0)] = CONSTANT
            units = units[(units != CONSTANT).any(axis=1)]
            self._translated[id(dim)] = units if len(units) else None
        return self._translated[id(dim)]

    _translated: dict[int, Integers | None]

    def _axes(self, dims: Mapping[str, tuple[Integers | None, ...]]) -> tuple[Axis, ...]:
        count = sum(map(len, self.groups))
        owner = np.repeat(np.arange(len(self.groups)), [len(group) for group in self.groups])
        slots: list[list[Slot]] = [[] for _ in self.groups]
        for tensor, units_by_dim in dims.items():
            for d, units in enumerate(units_by_dim):
                if units is None:
                    continue
                positions = np.bincount(units[units != CONSTANT], minlength=count)
                for axis in np.unique(owner[positions > 0]):
                    slots[axis].append(Slot(tensor, d, int(positions[owner == axis].max())))
        names = _unique_names([_module_of(found[0].tensor) for found in slots])
        return tuple(
            Axis(name, len(group), bool(self.solution.exact[group].all()), tuple(found))
            for name, group, found in zip(names, self.groups, slots, strict=True)
        )

    def _frozen(self) -> list[Frozen]:
        found: list[Frozen] = []
        for name, (_, dims) in self.run.tensors.items():
            for d, dim in enumerate(dims):
                units = self._units(dim)
                if isinstance(dim, Fixed):
                    continue
                stays = np.ones(dim.shape[1], dtype=bool) if units is None else (units == CONSTANT).all(axis=0)
                counts: dict[Reason, int] = {}
                for reason in map(self._reason, self._reason_keys(dim[:, stays])):
                    counts[reason[0]] = counts.get(reason[0], 0) + reason[1]
                found.extend(Frozen(name, d, count, r.text, r.where) for r, count in counts.items())
        return found

    def _reason_keys(self, labels: Integers) -> list[tuple[int, int, int]]:
        """`(reason index, class, count)` for the frozen labels of one dim, grouped."""
        if not labels.size:
            return []
        classes = self.solution.primitive[:, labels[0]]
        reasons = np.where(classes == CONSTANT, FREE, self.solution.reasons[classes])
        row = np.argmax(reasons != FREE, axis=0)
        columns = np.arange(len(row))
        index, cls = reasons[row, columns], classes[row, columns]
        cls = np.where(index == FREE, cls, FREE)
        pairs, counts = np.unique(np.stack([index, cls]), axis=1, return_counts=True)
        return [(int(i), int(c), int(n)) for (i, c), n in zip(pairs.T, counts, strict=True)]

    def _reason(self, key: tuple[int, int, int]) -> tuple[Reason, int]:
        index, cls, count = key
        if index != FREE:
            return self.run.labels.frozen[index][1], count
        return self.reasons.get(cls, UNUSED), count

    def _contraction(self, contraction: tuple[int, Dims, str]) -> Contraction:
        factor, dims, where = contraction
        units = [(self._units(dim), dim) for dim in dims]
        for translated, dim in units:
            if translated is None and not isinstance(dim, Fixed):
                factor *= dim.shape[1]
        return Contraction(factor, tuple(u for u, _ in units if u is not None), where)

    def _size_uses(self) -> list[SizeUse]:
        uses = []
        for use in self.run.uses:
            uses.append(SizeUse(self._expression(use.expression), self._whole(use.dim), use.where))
        return uses

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
        by_attribute = _uses_by_attribute(network.uses)
        frozen = False
        for axis, group in zip(network.axes, self.groups, strict=True):
            touched = _touching(network.uses, by_attribute, network.unit_range(axis.name))
            for removed in (1, axis.size // 2):
                mask = np.ones(network.unit_count, dtype=bool)
                mask[network.unit_range(axis.name)][-removed:] = False
                if (error := _conflict(touched, mask)) is not None:
                    self._freeze(group, Reason(str(error), ""))
                    frozen = True
                    break
        return frozen


def _conflict(uses: Sequence[SizeUse], mask: np.ndarray) -> AttributeFollowError | None:
    try:
        follow(uses, count_kept(mask))
    except AttributeFollowError as error:
        return error
    return None


def _uses_by_attribute(uses: Sequence[SizeUse]) -> dict[Attribute, list[int]]:
    found: dict[Attribute, list[int]] = {}
    for i, use in enumerate(uses):
        for attribute in attributes_of(use.expression):
            found.setdefault(attribute, []).append(i)
    return found


def _touching(
    uses: Sequence[SizeUse], by_attribute: Mapping[Attribute, list[int]], units: slice
) -> list[SizeUse]:
    """The uses that see these units, and those that share an attribute with one that does."""
    todo = [i for i, use in enumerate(uses) if any(_meets(dim, units) for dim in _dims_of(use))]
    chosen = set(todo)
    while todo:
        for attribute in attributes_of(uses[todo.pop()].expression):
            new = [i for i in by_attribute[attribute] if i not in chosen]
            chosen.update(new)
            todo.extend(new)
    return [uses[i] for i in sorted(chosen)]


def _meets(dim: Integers, units: slice) -> bool:
    return bool(((dim >= units.start) & (dim < units.stop)).any())


def _dims_of(use: SizeUse) -> list[Integers]:
    return [use.dim, *_widths(use.expression)]


def _widths(expression: Expression) -> list[Integers]:
    match expression:
        case Width(dim):
            return [dim]
        case Operation(_, left, right):
            return [*_widths(left), *_widths(right)]
        case _:
            return []


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _unique_names(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
