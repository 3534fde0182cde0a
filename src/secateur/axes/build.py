"""From a watched run to a `Network`: which classes of labels are units, which units are an axis, and what stays frozen."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from secateur.axes.blocks import Integers
from secateur.axes.branches import BRANCHES
from secateur.axes.cost import Contraction, TensorSpec
from secateur.axes.entries import Entry, ModuleList
from secateur.axes.kinds import Kind, Role, kind_of
from secateur.axes.labels import CONSTANT, Dims, Fixed, Labels, Reason
from secateur.axes.network import Axis, Frozen, Network, Slot
from secateur.axes.sizes import Comparison, Expression, Operation, SizeUse, Width
from secateur.axes.solve import FREE, Solution, solve
from secateur.axes.together import Followers, undecided

UNUSED = Reason("no run on these example inputs reads it")
SINGLE = Reason("the only unit of its axis: an axis keeps at least one")


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
        results: The dims of whatever else the frontend wants to know the size of; None where it does not know them itself.
        lists: The lists of modules whose entries may go, by path.
        runs_for: For the number of a contraction, the labels without any of which it does not run.
    """

    labels: Labels = field(default_factory=Labels)
    tensors: dict[str, tuple[TensorSpec, Dims]] = field(default_factory=dict)
    contractions: list[tuple[int, Dims, str]] = field(default_factory=list)
    uses: list[SizeUse] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    limits: list[Comparison] = field(default_factory=list)
    opened: tuple[str, ...] = ()
    spared: dict[str, tuple[int, ...]] = field(default_factory=dict)
    results: list[Dims | None] = field(default_factory=list)
    lists: dict[str, ModuleList] = field(default_factory=dict)
    runs_for: dict[int, tuple[int, ...]] = field(default_factory=dict)


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
        dims += [one.dim for one in run.lists.values()]
        for dim in {self._key(dim): dim for dim in dims if not isinstance(dim, Fixed)}.values():
            held[solution.classes(dim)] = True
        self.placed = np.flatnonzero(held[:-1])
        self.coupled: list[tuple[int, list[int]]] = []
        self.counts: dict[int, tuple[int, int]] = {}
        self.reasons = [*solution.frozen, UNUSED]
        self.reason_of = np.append(solution.reasons, FREE)
        self.reason_of[:-1][(self.reason_of[:-1] == FREE) & (solution.signature == 0)] = len(self.reasons) - 1

    def settle(self) -> None:
        """Number the free classes as units, axis by axis, and freeze axes whose sizes the code cannot follow, till none is."""
        asked = undecided(self.run.comparisons, self.run.uses)
        while True:
            self.groups = self._groups()
            self.unit_of = np.full(len(self.reason_of), CONSTANT, dtype=np.int64)
            start = 0
            for group in self.groups:
                self.unit_of[group] = np.arange(start, start + group.shape[1])
                start += group.shape[1]
            self._translated: dict[tuple[bool, int], Integers | None] = {}
            self.uses = [SizeUse(self._expression(u.expression), self._whole(u.dim), u.where) for u in self.run.uses]
            self.comparisons = self._compared(asked)
            self.limits = self._compared(self.run.limits)
            if not self._freeze_what_cannot_follow():
                return

    def network(self) -> Network:
        """Translate everything from labels to units."""
        dims = {name: tuple(self._units(d) for d in dims) for name, (_, dims) in self.run.tensors.items()}
        lists = {path: (self._units(one.dim),) for path, one in self.run.lists.items()}
        return Network(
            axes=self._axes({**dims, **lists}),
            frozen=tuple(self._frozen()),
            tensors={name: spec for name, (spec, _) in self.run.tensors.items()},
            dims=dims,
            contractions=tuple(self._contraction(n, c) for n, c in enumerate(self.run.contractions)),
            uses=tuple(self.uses),
            comparisons=tuple(self.comparisons),
            limits=tuple(self.limits),
            opened=self.run.opened,
            spared=self.run.spared,
            results=tuple(None if dims is None else tuple(map(self._units, dims)) for dims in self.run.results),
            entries=tuple(self._entries(lists)),
        )

    def _entries(self, lists: Mapping[str, tuple[Integers | None]]) -> Iterator[Entry]:
        """The entries of lists that are units."""
        for path, (units,) in lists.items():
            if units is not None:
                held = self.run.lists[path].entries.items()
                yield from (Entry(one, int(unit), names) for (one, names), unit in zip(held, units[0], strict=True))

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
        for size, members in self.coupled:
            if all(first in alone for first in members):
                joined = np.concatenate([alone[first].reshape(-1, size) for first in members])
                alone = {first: group for first, group in alone.items() if first not in members[1:]}
                alone[members[0]] = joined
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
        kinds = [kind_of(Role(int(np.bitwise_or.reduce(self.solution.roles[group.ravel()])))) for group in self.groups]
        names = _unique_names([self._module_of(found[0].tensor) for found in slots], kinds)
        return tuple(
            Axis(
                name,
                group.shape[1],
                bool(self.solution.exact[group].all()),
                tuple(found),
                *self.counts.get(int(group[0, 0]), (1, 1)),
                kind=kind,
            )
            for name, group, found, kind in zip(names, self.groups, slots, kinds, strict=True)
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
        positions = np.bincount(np.where(reasons == FREE, len(self.reasons) - 1, reasons))
        counts: Counter[Reason] = Counter()
        for index in np.flatnonzero(positions):
            counts[self.reasons[index]] += int(positions[index])
        return [(count, reason) for reason, count in counts.items()]

    def _module_of(self, tensor: str) -> str:
        return tensor if tensor in self.run.lists else tensor.rpartition(".")[0] or tensor

    def _contraction(self, number: int, contraction: tuple[int, Dims, str]) -> Contraction:
        factor, dims, where = contraction
        labels = np.array([self.run.runs_for.get(number, ())], dtype=np.int64)
        needed = tuple(np.unique(self.unit_of[self.solution.classes(labels)]).tolist()) if labels.size else ()
        units = [(self._units(dim), dim) for dim in dims]
        for translated, dim in units:
            if translated is None and not isinstance(dim, Fixed):
                factor *= dim.shape[1]
        return Contraction(
            factor,
            tuple(u for u, _ in units if u is not None),
            where,
            tuple(unit for unit in needed if unit != CONSTANT),
        )

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
        """Try each axis alone, then with those that the code makes as wide; freeze what cannot follow.

        True if any was frozen, or is to go together with others from now on.
        """
        own_limits = [limit for limit in self.limits if isinstance(limit.right, int)]
        followers = Followers((*self.uses, *self.comparisons, *own_limits), [group.shape[1] for group in self.groups])
        free = [True] * len(self.groups)
        for number, group in enumerate(self.groups):
            if not free[number]:
                continue
            counts = followers.counts([number], group.shape[1])
            if isinstance(counts, tuple):
                self.counts[int(group[0, 0])] = counts
            elif joined := followers.together(number, free):
                members, size = joined
                self.coupled.append((size, [int(self.groups[n][0, 0]) for n in members]))
                free = [one and n not in members for n, one in enumerate(free)]
            else:
                self._freeze(group.ravel(), Reason(counts.what, counts.where))
                free[number] = False
        return not all(free)


def _unique_names(modules: Sequence[str], kinds: Sequence[Kind]) -> list[str]:
    """An axis is named after the module that first holds it, with its kind where that module holds several."""
    held = Counter(modules)
    seen = Counter({BRANCHES: 1})
    unique = []
    for module, kind in zip(modules, kinds, strict=True):
        name = module if held[module] == 1 else f"{module}.{kind}"
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
