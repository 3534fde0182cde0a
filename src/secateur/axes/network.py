"""A network as what can be removed from it: axes, where their units live, what each costs, and what is frozen and why.

Plain data: strings and integer arrays. A frontend fills it (`secateur.axes.build`), allocators read it, and `Network.plan` turns
a choice of units into a `Plan`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.axes.blocks import Integers
from secateur.axes.branches import BRANCHES, Branch, Branches, FrozenBranch, Removal, removal_of, removed_branches
from secateur.axes.cost import Contraction, Cost, CostModel, TensorSpec
from secateur.axes.entries import Entry, removal_of_entries
from secateur.axes.kinds import Kind
from secateur.axes.plan import AttributeChange, AxisCut, Plan, TensorCut
from secateur.axes.sizes import COMPARISONS, Comparison, SizeUse, count_kept, describe, evaluate, follow
from secateur.errors import PlanError

Scores = Mapping[str, NDArray[np.float64]]
"""For each axis' name one number a unit (`[axis.size]`); higher means keep."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place where the units of an axis live: `positions` positions a unit, along one dim of one tensor.

    They are those that go when the unit goes. Where rows and columns of a square go together, units share some of them.
    A list of modules counts as a tensor of one dim.
    """

    tensor: str
    dim: int
    positions: int

    def __str__(self) -> str:
        return f"{self.tensor}:{self.dim}"


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of interchangeable units: a permutation symmetry of the network.

    Attributes:
        name: The module that first holds it; `module.kind` where that holds several, made unique with `#2`, `#3`...
        size: The number of units.
        exact: Removing a unit equals zeroing it. False where a mean, variance, norm or softmax runs over the axis.
        slots: Every place where its units live.
        least: How many units must stay, because the code branches on their number.
        step: What the number of units that stay must be a multiple of, because the code or a kernel asks for it.
        kind: What the units are, from the parts that the axis plays in operators: one of `secateur.axes.KINDS`.
    """

    name: str
    size: int
    exact: bool
    slots: tuple[Slot, ...]
    least: int = 1
    step: int = 1
    kind: Kind = "neurons"

    def near(self, count: float) -> int:
        """The number of units nearest to `count` that may stay."""
        return min(self.size, max(self.least, round(count / self.step) * self.step))


@dataclass(frozen=True, slots=True)
class Frozen:
    """Positions of one dim that cannot go, alone or together with others, and why.

    Attributes:
        tensor: The parameter or buffer.
        dim: Which of its dims.
        count: How many of the dim's positions it holds.
        reason: Why, in words.
        where: The line of the user's code that decides it.
    """

    tensor: str
    dim: int
    count: int
    reason: str
    where: str


@dataclass(frozen=True)
class Network:
    """What can be removed from a network, and what cannot.

    Attributes:
        axes: The prunable axes, in the order in which the network meets them.
        frozen: What must stay, with reasons.
        tensors: Every parameter and buffer, by its name in the state dict; tied ones under their first name.
        dims: For each tensor, each dim's units `[factors, n]` as global unit numbers, -1 = always there; None = never shrinks.
        contractions: What multiplies and adds, for the cost.
        uses: The integers of the code that must follow.
        comparisons: What the code asks about them, and must be answered as before.
        limits: What must hold of widths besides, or the framework refuses the layer.
        opened: Paths of fused modules that were opened to be watched.
        spared: For a tensor's name, the dims along which masking must not zero it, because its norm divides something.
        results: Results of operators that the frontend asks about, each dim as in `dims`; None for one it knows nothing of.
        entries: The modules that go out of a list when a unit goes.
        find_branches: Finds its branches, when they are first asked for; by default it has none.
    """

    axes: tuple[Axis, ...]
    frozen: tuple[Frozen, ...]
    tensors: Mapping[str, TensorSpec]
    dims: Mapping[str, tuple[Integers | None, ...]] = field(repr=False)
    contractions: tuple[Contraction, ...] = field(repr=False, default=())
    uses: tuple[SizeUse, ...] = field(repr=False, default=())
    comparisons: tuple[Comparison, ...] = field(repr=False, default=())
    limits: tuple[Comparison, ...] = field(repr=False, default=())
    opened: tuple[str, ...] = field(repr=False, default=())
    spared: Mapping[str, tuple[int, ...]] = field(repr=False, default_factory=dict)
    results: tuple[tuple[Integers | None, ...] | None, ...] = field(repr=False, default=())
    entries: tuple[Entry, ...] = field(repr=False, default=())
    find_branches: Callable[[], Branches] = field(repr=False, compare=False, default=Branches)

    @cached_property
    def _branches(self) -> Branches:
        return self.find_branches()

    @property
    def knows_branches(self) -> bool:
        """Whether somebody has asked for its branches."""
        return "_branches" in vars(self)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What can be removed whole, in the order in which the network adds it up."""
        return self._branches.removable

    @property
    def frozen_branches(self) -> tuple[FrozenBranch, ...]:
        """Branches that must stay as the model is written, with reasons."""
        return self._branches.frozen

    @cached_property
    def unit_count(self) -> int:
        """The number of units of all axes together."""
        return sum(axis.size for axis in self.axes)

    @cached_property
    def _starts(self) -> dict[str, int]:
        starts = np.cumsum([0, *(axis.size for axis in self.axes)])
        return {axis.name: int(start) for axis, start in zip(self.axes, starts, strict=False)}

    def axis(self, name: str) -> Axis:
        """The axis of that name.

        Raises:
            PlanError: There is none.
        """
        if name not in self._starts:
            raise PlanError(f"no axis is called {name!r}; the axes are: {', '.join(self._starts) or 'none'}")
        return next(axis for axis in self.axes if axis.name == name)

    def unit_range(self, name: str) -> slice:
        """Where the units of an axis lie among all units."""
        start = self._starts[self.axis(name).name]
        return slice(start, start + self.axis(name).size)

    def units(self, tensor: str) -> tuple[Integers | None, ...]:
        """For each dim of a tensor its units `[factors, n]`, or None where it never shrinks.

        A tensor that goes whole with a unit, as part of a list's entry, has it at all positions of its first dim.
        """
        return self._whole.get(tensor, self.dims[tensor])

    @cached_property
    def _whole(self) -> dict[str, tuple[Integers | None, ...]]:
        found: dict[str, tuple[Integers | None, ...]] = {}
        for entry in self.entries:
            for name in entry.tensors:
                for first, *others in [dims] if (dims := found.get(name, self.dims[name])) else ():
                    row = np.full((1, self.tensors[name].shape[0]), entry.unit)
                    found[name] = (row if first is None else np.vstack([first, row]), *others)
        return found

    def cost(self, left: Mapping[str, ArrayLike] | Plan | None = None) -> Cost:
        """The cost with so many units left of each axis, or with these (axes not named stay whole); or under a plan.

        Of most axes the numbers alone matter, because the units of an axis are interchangeable. The modules of a list may differ
        in size: there, a number means the first ones. Branches all differ, so that only a plan can say which of them go.

        Raises:
            PlanError: An unknown axis, or a number outside 0..size.
        """
        given: Mapping[str, ArrayLike] = left.kept if isinstance(left, Plan) else left or {}
        counts = {name: len(units) if np.ndim(units) else int(units) for name, units in given.items()}  # type: ignore[arg-type]
        gone = frozenset[int]()
        if isinstance(left, Plan) and BRANCHES in counts:
            gone = removed_branches(self.branches, left.kept[BRANCHES])
        elif BRANCHES in counts and counts[BRANCHES] != len(self.branches):
            raise PlanError(f"each of the {BRANCHES} costs something else: give cost() a plan, not numbers")
        for name, count in counts.items():
            if name != BRANCHES and not 0 <= count <= self.axis(name).size:
                raise PlanError(f"axis {name!r} has {self.axis(name).size} units; it cannot keep {count}")
        kept = np.array([counts.get(axis.name, axis.size) for axis in self.axes], dtype=np.int64)
        contractions = {number for branch in gone for number in self.branches[branch].contractions}
        entries = self._gone_entries(given) if self.entries else set[int]()
        return self._cost_model.cost(kept, self._removal(gone, entries).tensors, contractions, entries)

    @cached_property
    def axes_of_lists(self) -> frozenset[str]:
        """The axes whose units are modules of lists."""
        units = {entry.unit for entry in self.entries}
        return frozenset(axis.name for axis in self.axes if self._starts[axis.name] in units)

    def _gone_entries(self, left: Mapping[str, ArrayLike]) -> set[int]:
        """The units that are modules of lists, and do not stay."""
        stays = np.ones(self.unit_count, dtype=bool)
        for name in self.axes_of_lists.intersection(left):
            units = np.asarray(left[name], dtype=np.int64)
            stays[self.unit_range(name)] = False
            stays[self.unit_range(name)][units if units.ndim else slice(int(units))] = True
        return {entry.unit for entry in self.entries if not stays[entry.unit]}

    def branch_cost(self, number: int) -> Cost:
        """What goes with a branch, of the dense network's cost."""
        branch, kept = self.branches[number], np.array([axis.size for axis in self.axes], dtype=np.int64)
        gone = {n for i in (number, *branch.within) for n in self.branches[i].contractions}
        whole = self._cost_model.cost(kept)
        rest = self._cost_model.cost(kept, self._removal((number, *branch.within)).tensors, gone)
        return Cost(whole.parameters - rest.parameters, whole.macs - rest.macs, whole.bytes - rest.bytes)

    @cached_property
    def _cost_model(self) -> CostModel:
        sizes, entries = [axis.size for axis in self.axes], {entry.unit for entry in self.entries}
        return CostModel(sizes, self.tensors, self.dims, self.contractions, entries)

    def plan(self, kept: Mapping[str, ArrayLike]) -> Plan:
        """Turn a choice of units into a plan.

        Args:
            kept: For an axis' name the units that stay. Axes not named stay whole. Under the name `branches`, the branches that
                stay, by number; those that lie in one that goes go with it.

        Raises:
            PlanError: An unknown axis, a unit out of range, an axis or a tensor left empty, or a layer too narrow to run.
            AttributeFollowError: An integer in the user's code cannot follow.
        """
        if not isinstance(kept, Mapping):
            raise PlanError(f"say which units of which axis stay, as {{name: units}}; got {type(kept).__name__}")
        mask = np.ones(self.unit_count, dtype=bool)
        for name, units in kept.items():
            if name != BRANCHES:
                mask[self.unit_range(name)] = self._mask(name, units)
        gone = removed_branches(self.branches, kept[BRANCHES]) if BRANCHES in kept else None
        return self.plan_from_mask(mask, gone)

    def plan_from_tensors(self, cuts: Iterable[TensorCut]) -> Plan:
        """The plan that cuts these tensors in this way: that of the same network in another form.

        Raises:
            PlanError: No choice of units cuts them so.
            AttributeFollowError: As `plan`.
        """
        wanted = {cut.name: cut for cut in cuts}
        stays = np.zeros(self.unit_count + 1, dtype=bool)  # the last is that of -1
        for name, units_by_dim in self.dims.items():
            positions = wanted[name].kept if name in wanted else (None,) * len(units_by_dim)
            for units, kept in zip(units_by_dim, positions, strict=True):
                if units is not None:
                    stays[units if kept is None else units[:, list(kept)]] = True
        plan = self.plan_from_mask(stays[:-1])
        if {cut.name: cut.kept for cut in plan.tensors} != {name: cut.kept for name, cut in wanted.items()}:
            raise PlanError(
                "the plan removes what cannot go together here; trace the model in this form, and plan anew"
            )
        return plan

    def plan_from_mask(self, mask: NDArray[np.bool_], gone: frozenset[int] | None = None) -> Plan:
        """The plan that keeps the units where `mask[unit]`, over all units, is true, without the branches `gone`.

        None says nothing of branches, and neither does the plan then: they all stay, and need not be known.
        """
        axes = [
            AxisCut(a.name, a.size, tuple(np.flatnonzero(mask[self.unit_range(a.name)]).tolist())) for a in self.axes
        ]
        if gone is not None:
            stay = tuple(number for number in range(len(self.branches)) if number not in gone)
            axes.append(AxisCut(BRANCHES, len(self.branches), stay))
        removal = self._removal(gone or (), {entry.unit for entry in self.entries if not mask[entry.unit]})
        attributes = follow(self.uses, count_kept(mask), self.comparisons)
        for limit in self.limits:
            left, right = (evaluate(side, attributes, count_kept(mask)) for side in (limit.left, limit.right))
            if COMPARISONS[limit.symbol](left, right) != limit.outcome:
                asked = f"{describe(limit.left)} {limit.symbol} {describe(limit.right)}"
                raise PlanError(
                    f"{limit.where} ({asked}); the plan makes that {left} and {right}: choose other numbers"
                )
        return Plan(
            axes=tuple(axes),
            tensors=tuple(
                cut for name in self.dims if name not in removal.tensors and (cut := self._cut(name, mask)) is not None
            ),
            attributes=tuple(
                AttributeChange(a.module, a.name, a.index, a.value, new)
                for a, new in sorted(attributes.items(), key=lambda item: str(item[0]))
                if new != a.value
            ),
            opened=self.opened,
            removal=removal,
        )

    def _removal(self, gone: Collection[int], units: Collection[int] = ()) -> Removal:
        """What goes whole with these branches and units; where no branch does, they are not looked for."""
        entries = removal_of_entries(self.entries, units)
        return removal_of(self.branches, gone).and_also(entries) if gone else entries

    def _mask(self, name: str, units: ArrayLike) -> NDArray[np.bool_]:
        size, given = self.axis(name).size, np.asarray(units)
        if given.ndim != 1 or (given.dtype != bool and len(np.unique(given)) < len(given)):
            raise PlanError(
                f"axis {name!r}: say which units stay, each once, such as range({size // 2}); got {units!r}"
            )
        if given.dtype == bool and given.shape == (size,):
            mask = given.copy()
        else:
            if given.size and (given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= size):
                raise PlanError(f"axis {name!r} has units 0..{size - 1}; got {units!r}")
            mask = np.zeros(size, dtype=bool)
            mask[given.astype(np.int64)] = True
        if not mask.any():
            raise PlanError(f"axis {name!r} would be left without units; keep at least one of its {size}")
        return mask

    def _cut(self, name: str, mask: NDArray[np.bool_]) -> TensorCut | None:
        padded = np.append(mask, True)
        kept: list[tuple[int, ...] | None] = []
        for dim in self.dims[name]:
            stays = None if dim is None else padded[dim].all(axis=0)
            kept.append(None if stays is None or stays.all() else tuple(np.flatnonzero(stays).tolist()))
        if all(positions is None for positions in kept):
            return None
        if any(positions == () for positions in kept):
            raise PlanError(
                f"{name} would be left without positions; keep more units of {', '.join(self._axes_in(name))}"
            )
        return TensorCut(name, self.tensors[name].shape, tuple(kept), tuple(self.spared.get(name, ())))

    def _axes_in(self, tensor: str) -> list[str]:
        return [axis.name for axis in self.axes if any(slot.tensor == tensor for slot in axis.slots)]
