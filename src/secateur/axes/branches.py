"""Residual branches: what is added to a stream that goes on without it, and what goes when a branch goes.

Where `x + y` joins `y` to `x`, and `y` was made of `x`, silencing `y` leaves `x`: removing all that serves `y` alone is exactly
that. Branches are units, but no axis: they are not interchangeable, so nothing can be permuted, and each has a cost of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from secateur.errors import PlanError

BRANCHES = "branches"
"""What plans call the choice of branches, beside the names of axes."""

MOST = 0.9
"""A branch is called after the smallest module that holds this share of what it holds."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """A module that gives zeros from now on, shaped like the first tensor it takes.

    Attributes:
        module: The module's path.
        results: None where it returns one tensor; else what each item of the tuple it returns is: `zeros`, `none`, or the number
            or name of the argument that it hands on.
        last: Whether its zeros are what joins the stream, so that silencing it silences the branch.
    """

    module: str
    results: tuple[str, ...] | None
    last: bool


@dataclass(frozen=True, slots=True)
class Joint:
    """An addition in a model that is a graph, one operand of which goes.

    Attributes:
        node: The addition.
        goes: Which of its operands goes, 0 or 1.
        nodes: Everything that goes with it, in the order of the graph.
    """

    node: str
    goes: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes whole: with branches, or with units that are entries of a list of modules.

    Attributes:
        modules: The modules that something takes the place of.
        joints: The additions that end, where the model is a graph.
        tensors: The parameters and buffers that go.
        entries: The modules that go out of their lists, which become shorter.
    """

    modules: tuple[StandIn, ...] = ()
    joints: tuple[Joint, ...] = ()
    tensors: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.modules or self.joints or self.entries)

    def and_also(self, other: "Removal") -> "Removal":
        """Both; a module that lies in another one goes with that."""
        modules: dict[str, StandIn] = {}
        for one in (*self.modules, *other.modules):
            last = one.last or (one.module in modules and modules[one.module].last)
            modules[one.module] = StandIn(one.module, one.results, last)
        inner = {path for path in modules if any(path.startswith(f"{outer}.") for outer in modules)}
        return Removal(
            tuple(one for path, one in modules.items() if path not in inner),
            tuple(dict.fromkeys((*self.joints, *other.joints))),
            tuple(dict.fromkeys((*self.tensors, *other.tensors))),
            tuple(dict.fromkeys((*self.entries, *other.entries))),
        )

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Removal":
        """Build one from parsed JSON."""
        return cls(
            tuple(
                StandIn(
                    str(one["module"]),
                    None if one["results"] is None else tuple(str(item) for item in one["results"]),
                    bool(one["last"]),
                )
                for one in data["modules"]
            ),
            tuple(
                Joint(str(one["node"]), int(one["goes"]), tuple(str(node) for node in one["nodes"]))
                for one in data["joints"]
            ),
            tuple(str(name) for name in data["tensors"]),
            tuple(str(path) for path in data.get("entries", ())),
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch that can be removed whole: exact, because what it is added to stays, but not permutable.

    Attributes:
        name: The smallest module that holds most of it.
        where: The line of the user's code that joins it.
        removal: What goes with it.
        contractions: Which of the network's contractions go with it, by number.
        within: The branches that lie in it and go with it, by number.
    """

    name: str
    where: str
    removal: Removal
    contractions: tuple[int, ...] = ()
    within: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FrozenBranch:
    """A branch that joins by addition, and yet cannot be removed from the model as it is written.

    Attributes:
        where: The line of the user's code that joins it.
        reason: Why, and what to do.
    """

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a network.

    Attributes:
        removable: Those that can be removed whole, in the order in which the network adds them up.
        frozen: Those that must stay as the model is written, with reasons.
    """

    removable: tuple[Branch, ...] = ()
    frozen: tuple[FrozenBranch, ...] = ()


def removed_branches(branches: Sequence[Branch], kept: ArrayLike) -> frozenset[int]:
    """The numbers of the branches that go when these are to be kept, with all that lie in them.

    Raises:
        PlanError: What is given is no choice of branches.
    """
    given, size = np.asarray(kept), len(branches)
    if given.ndim == 1 and given.dtype == bool and len(given) == size:
        given = np.flatnonzero(given)
    numbers = given.tolist() if given.ndim == 1 and (given.dtype.kind in "iu" or not given.size) else [-1]
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(size)):
        raise PlanError(
            f"{BRANCHES!r}: say which branches stay, each once, as numbers in 0..{size - 1}; got {kept!r}"
            if size
            else f"this network has no branches that could be removed; got {kept!r}"
        )
    gone = set(range(size)).difference(numbers)
    return frozenset(gone.union(*(branches[number].within for number in gone)))


def removal_of(branches: Sequence[Branch], gone: Iterable[int]) -> Removal:
    """What goes with these branches, in the order of the network."""
    removal = Removal()
    for number in sorted(gone):
        removal = removal.and_also(branches[number].removal)
    return removal


def branch_name(sizes: Mapping[str, int]) -> str:
    """The path of the smallest module that holds most of these tensors, by their numbers of elements."""
    held: dict[str, int] = {}
    for tensor, size in sizes.items():
        parts = tensor.split(".")[:-1]
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            held[path] = held.get(path, 0) + size
    most = [path for path, size in held.items() if size >= MOST * sum(sizes.values())]
    return max(most, key=lambda path: (path.count("."), path), default=next(iter(sizes), "")) or BRANCHES
