"""A plan: which units stay. Plain data, equal in every framework, applied as often as you like."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.axes.branches import BRANCHES, Removal
from secateur.errors import PlanError


@dataclass(frozen=True, slots=True)
class AxisCut:
    """Which units of one axis stay.

    Attributes:
        name: The axis' name in its network.
        size: Its number of units before.
        kept: The units that stay, ascending.
    """

    name: str
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorCut:
    """Which positions of one parameter or buffer stay.

    Attributes:
        name: The tensor's name in the model's state dict.
        shape: Its shape before.
        kept: For each dim the positions that stay, ascending, or None where all do.
        spared: Dims along which masking leaves the tensor as it is: the direction of a weight norm, say, whose length divides.
    """

    name: str
    shape: tuple[int, ...]
    kept: tuple[tuple[int, ...] | None, ...]
    spared: tuple[int, ...] = ()

    @property
    def shape_after(self) -> tuple[int, ...]:
        """The tensor's shape once the plan is applied."""
        return tuple(n if kept is None else len(kept) for n, kept in zip(self.shape, self.kept, strict=True))

    def fits(self, shape: Sequence[int] | None, whole: bool, after: bool = False) -> bool:
        """Whether this is the shape of the tensor that it cuts.

        Args:
            shape: That of a tensor; None if it has none yet.
            whole: All dims must agree, as those of a parameter. A buffer may have grown along dims that are not cut.
            after: The tensor has been cut.
        """
        wanted = self.shape_after if after else self.shape
        return (
            shape is not None
            and len(shape) == len(wanted)
            and all(n == m or (kept is None and not whole) for n, m, kept in zip(shape, wanted, self.kept, strict=True))
        )


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """An integer that a module keeps and that must follow.

    Attributes:
        module: The module's path; empty for the model itself.
        name: The attribute.
        index: Which element of a tuple or list, or None.
        old: Its value in the dense model.
        new: Its value in the compact model.
    """

    module: str
    name: str
    index: int | None
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays of a network: by axis, by tensor, and the integers that follow.

    Attributes:
        axes: Every prunable axis of the network with its kept units; last, if branches were chosen as well, those that stay.
        tensors: The tensors that shrink.
        attributes: The integers of modules that change.
        opened: Paths of fused library modules that are replaced by their open form, because heads of them go.
        removal: What goes with branches that are removed.
    """

    axes: tuple[AxisCut, ...]
    tensors: tuple[TensorCut, ...]
    attributes: tuple[AttributeChange, ...] = ()
    opened: tuple[str, ...] = ()
    removal: Removal = field(default_factory=Removal)

    @property
    def kept(self) -> dict[str, NDArray[np.int64]]:
        """The kept units of every axis, by name: the argument that `Network.plan` takes."""
        return {axis.name: np.array(axis.kept, dtype=np.int64) for axis in self.axes}

    @property
    def counts(self) -> dict[str, int]:
        """How many units of every axis stay."""
        return {axis.name: len(axis.kept) for axis in self.axes}

    def then(self, second: "Plan") -> "Plan":
        """This plan followed by one for the model that it gives, as one plan for the dense model."""
        mine = {cut.name: cut for cut in self.tensors}
        theirs = {cut.name: cut for cut in second.tensors}
        tensors = [_chained(mine.get(name), theirs.get(name)) for name in {**mine, **theirs}]
        changed = {(a.module, a.name, a.index): a for a in self.attributes}
        for a in second.attributes:
            first = changed.get((a.module, a.name, a.index))
            changed[a.module, a.name, a.index] = a if first is None else replace(a, old=first.old)
        later = {axis.name: axis for axis in second.axes}
        axes = []
        for axis in self.axes:
            cut = later.get(axis.name)
            fits = cut is not None and cut.size == len(axis.kept)
            axes.append(replace(axis, kept=tuple(axis.kept[i] for i in cut.kept)) if fits and cut is not None else axis)
        axes += [cut for name, cut in later.items() if name == BRANCHES and name not in self.counts]
        opened = tuple(dict.fromkeys((*self.opened, *second.opened)))
        removal = self.removal.and_also(second.removal)
        stay = tuple(cut for cut in tensors if cut.name not in removal.tensors)
        return Plan(tuple(axes), stay, tuple(changed.values()), opened, removal)

    def __str__(self) -> str:
        cut = [axis for axis in self.axes if len(axis.kept) < axis.size]
        lines = [f"{axis.name}: {axis.size} -> {len(axis.kept)}" for axis in cut]
        shrink, every = (sum(axis.name != BRANCHES for axis in axes) for axes in (cut, self.axes))
        return "\n".join([f"Plan: {shrink} of {every} axes shrink", *lines])

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(asdict(self), indent=None, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            PlanError: The text is no plan.
        """
        try:
            return cls.from_data(json.loads(text))
        except json.JSONDecodeError as error:
            raise PlanError(f"not a plan: {error}; write one with plan.to_json()") from error

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Plan":
        """Build a plan from parsed JSON.

        Raises:
            PlanError: A field is missing or of the wrong kind.
        """
        try:
            return cls(
                axes=tuple(
                    AxisCut(str(a["name"]), int(a["size"]), _kept(a["kept"], int(a["size"]))) for a in data["axes"]
                ),
                tensors=tuple(_tensor_cut(t) for t in data["tensors"]),
                attributes=tuple(
                    AttributeChange(
                        str(a["module"]),
                        str(a["name"]),
                        None if a["index"] is None else int(a["index"]),
                        int(a["old"]),
                        int(a["new"]),
                    )
                    for a in data["attributes"]
                ),
                opened=tuple(str(path) for path in data["opened"]),
                removal=Removal.from_data(data["removal"]) if "removal" in data else Removal(),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"not a plan: {type(error).__name__} {error}; write one with plan.to_json()") from error


def _chained(first: TensorCut | None, second: TensorCut | None) -> TensorCut:
    """Two cuts of one tensor, the second in positions of the first's result."""
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    kept = tuple(
        b if a is None else a if b is None else tuple(a[i] for i in b)
        for a, b in zip(first.kept, second.kept, strict=True)
    )
    return TensorCut(first.name, first.shape, kept, first.spared)


def _tensor_cut(data: Mapping[str, Any]) -> TensorCut:
    shape = tuple(int(n) for n in data["shape"])
    kept = tuple(None if k is None else _kept(k, n) for k, n in zip(data["kept"], shape, strict=True))
    return TensorCut(str(data["name"]), shape, kept, tuple(int(d) for d in data["spared"]))


def _kept(positions: Any, size: int) -> tuple[int, ...]:
    kept = tuple(int(position) for position in positions)
    if any(b <= a for a, b in pairwise(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < size):
        raise ValueError(f"kept positions must be ascending and lie in 0..{size - 1}")
    return kept
