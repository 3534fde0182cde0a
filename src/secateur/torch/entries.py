"""Which entries of module lists a tensor comes from: whether the list can lose some, and what else goes with them.

A tensor made with the parameters of one entry belongs to that entry; one that code picked from a dim by its number, as a router's
weight for expert 3, belongs to that position. Where the two meet, alike for every number, list and dim stand for the same units.
What puts together the results of all of them, as a sum does, belongs to none. Whatever else brings two entries together, such as
a layer that reads what another wrote, ends it: that list keeps its entries.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from secateur.axes import Dim, Dims, Integers, Labels, Reason, Role
from secateur.torch.numbering import Numbers
from secateur.torch.rows import READS, WRITES, Rows
from secateur.torch.schema import operands
from secateur.torch.stand_in import holders

Positions = frozenset[int]
"""Labels, each of one position of a dim."""

NOWHERE: Positions = frozenset()

_LINES_UP = frozenset({"cat", "stack"})
_ADDS = frozenset({"add", "index_add", "scatter_add"})
_GATHERS = _LINES_UP | _ADDS | READS | WRITES
"""Operators that put together what several entries made, or read of it the rows to which one more adds."""

_FIRST = _ADDS | READS | WRITES
"""What the entry that comes first may read besides what the others read: what the sum begins with."""


@dataclass(slots=True, eq=False)
class Followed:
    """A list of modules, or a dim from which positions were picked.

    Attributes:
        number: Which it is.
        dim: A label for each entry or position.
        path: That of the list; empty for a dim.
        why: Why none of it can go, once that is known.
        picked: What stays where the dim turns out to be no list's, and why.
        seen: The entries or positions that operators met one by one, in the order in which they did.
        outside: For each of them, operator by operator, the numbers of what it read that belongs to none.
    """

    number: int
    dim: Integers
    path: str = ""
    why: str = ""
    picked: list[tuple[Integers, Reason]] = field(default_factory=list)
    seen: dict[int, None] = field(default_factory=dict)
    outside: dict[int, list[tuple[str, tuple[int, ...]]]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many entries or positions it has."""
        return int(self.dim.shape[1])


class Entries:
    """Follows what belongs to entries of lists, and to positions of dims, while a model runs.

    Args:
        labels: The algebra of the run.
        root: A number for the memory of a tensor.
        where: The line of the user's code that is running.
    """

    def __init__(self, labels: Labels, root: Callable[[Tensor], int], where: Callable[[], str]) -> None:
        self.running: tuple[int, ...] = ()
        """The labels of the entries that the last operator ran for."""
        self.gathers = False
        """Whether it put together what several of them made."""
        self.picked: Dims | None = None
        """The positions before the one that it picked; or the dim from which it took every one."""
        self._labels, self._root, self._where = labels, root, where
        self._followed: list[Followed] = []
        self._at: dict[int, tuple[Followed, int]] = {}
        self._own: dict[int, tuple[Tensor, Positions]] = {}
        self._written: dict[int, Positions] = {}
        self._met: dict[tuple[Followed, Followed], set[tuple[int, int]]] = {}
        self._numbers = Numbers()
        self._rows = Rows(lambda tensor: self._numbers.of(tensor, root(tensor)), root)

    def begin(self) -> None:
        """The next operator passes."""
        self.running, self.gathers, self.picked = (), False, None

    def watch(self, path: str, entries: Iterable[Iterable[Tensor]]) -> None:
        """Follow a list, by the tensors that each of its entries holds."""
        held = [list(tensors) for tensors in entries]
        dim = self._labels.fresh(len(held))
        assert isinstance(dim, np.ndarray)
        self._labels.observe((dim,))
        self._labels.mark(Role.GROUPED, dim)
        self._labels.mark_normalised(dim)
        self._follow(dim, path)
        for label, tensors in zip(dim[0].tolist(), held, strict=True):
            for tensor in tensors:
                self._own[id(tensor)] = (tensor, self.of(tensor) | {label})

    def choose(self, tensor: Tensor, dim: Integers, position: int, reason: Reason) -> None:
        """`tensor` says where a choice is this position; rows that make one choice each are then no other position's."""
        self.pick(tensor, dim, position, dim, reason)
        if tensor.ndim == 1:
            self._rows.keep_apart(tensor)

    def pick(self, tensor: Tensor, dim: Dim, position: int, stays: Integers, reason: Reason) -> None:
        """`tensor` is what stands at a position of `dim`, which the code names by its number.

        Args:
            tensor: What was picked.
            dim: From where.
            position: Counted from the start.
            stays: What must stay where no list has such an entry.
            reason: Why it must.
        """
        if not (self._followed and isinstance(dim, np.ndarray) and len(dim) == 1 and (dim >= 0).all()):
            self._labels.freeze(stays, reason)
            return
        self.picked = (dim[:, :position],)
        label = int(dim[0, position])
        followed = self._at[label][0] if label in self._at else self._follow(dim)
        followed.picked.append((stays, reason))
        self._own[id(tensor)] = (tensor, self.of(tensor) | {label})

    def unbind(self, tensors: Sequence[Tensor], dim: Dim, reason: Reason) -> None:
        """`tensors` are what stands at each position of `dim`."""
        if isinstance(dim, np.ndarray):
            for position, tensor in enumerate(tensors):
                self.pick(tensor, dim, position, dim, reason)
            self.picked = (dim,)

    def of(self, tensor: Tensor) -> Positions:
        """Where a tensor belongs: for a list or dim to one place, or to several, if it was put together of what they made."""
        own = self._own.get(id(tensor))
        found = self._written.get(self._root(tensor), NOWHERE) | (own[1] if own else NOWHERE)
        return frozenset(label for label in found if not self._at[label][0].why)

    def lined_up(self, tensors: Sequence[Tensor]) -> Integers | None:
        """The list or dim to all of whose places these tensors belong, in order."""
        found = [dict(self._places([self.of(tensor)])) for tensor in tensors]
        for followed in found[0] if len(found) > 1 else ():
            if [one.get(followed) for one in found] == [[frozenset({place})] for place in range(followed.size)]:
                return followed.dim
        return None

    def ran(
        self,
        name: str,
        arguments: Mapping[str, Any],
        results: Sequence[Tensor],
        written: Sequence[Tensor],
        *,
        moves: bool,
        seeded: bool,
    ) -> None:
        """An operator ran.

        Args:
            name: What it is called, without underscores.
            arguments: What it took, by name.
            results: What it gave.
            written: To whose memory it wrote.
            moves: Its results are values of one of its operands.
            seeded: Its results are random.
        """
        if not any(one.path and not one.why for one in self._followed):
            return
        given = operands(arguments.values())
        numbers = [self._numbers.of(tensor, self._root(tensor)) for tensor in given]
        picked = results if len(results) == 1 else ()  # what was picked belongs where it was picked
        parts = {part for tensor in (*given, *picked) if (part := self.of(tensor))}
        gathers = name not in WRITES or self._rows.commutes(arguments)
        gathers &= (name in _GATHERS and arguments.get("alpha", 1) == 1) or (moves and len(parts) == 1)
        read = tuple(number for number, tensor in zip(numbers, given, strict=True) if not self.of(tensor))
        left, added, running = set[int](), set[int](), list[tuple[Followed, int]]()
        for followed, sets in self._places(parts):
            places = sorted(set().union(*(one for one in sets if len(one) < followed.size)))
            if (len(places) > 1 and not gathers) or (
                len(places) < followed.size and name in _LINES_UP and len(places) > 1
            ):
                followed.why = f"what some of its entries make is read before all of them ran ({self._where()})"
                continue
            if len(places) == 1:
                followed.seen.setdefault(places[0])
                if read:
                    followed.outside.setdefault(places[0], []).append((name, read))
            if len(places) == 1 or (places and name not in _LINES_UP):
                self.gathers |= len(places) > 1
                running.append((followed, [*places[-1:], *(place for place in followed.seen if place in places)][-1]))
            left.update(followed.dim[0, places].tolist() if len(places) < followed.size else ())
            added.update(followed.dim[0, sorted(set().union(*sets))].tolist())
        self.running = tuple(int(followed.dim[0, place]) for followed, place in running)
        for (one, i), (other, j) in combinations(running, 2) if not self.gathers else ():
            self._met.setdefault((one, other), set()).add((i, j))
        self._numbers.ran(name, arguments, numbers, results, map(self._root, written), seeded)
        self._rows.ran(name, moves, arguments, results)
        for result in results if parts else ():
            self._own[id(result)] = (result, frozenset(left) | (self.of(result) if len(results) > 1 else NOWHERE))
        for tensor in written if parts else ():
            self._written[self._root(tensor)] = frozenset(added)

    def evaluated(self) -> None:
        """The run in eval mode is over: lists some entries of which did not run there cannot be tried."""
        for followed in self._followed:
            missing = sorted(set(range(followed.size)).difference(followed.seen))
            if missing and followed.path:
                followed.why = followed.why or f"entry {missing[0]} does not run on these example inputs"

    def settle(self, outputs: Iterable[Tensor]) -> dict[str, Integers]:
        """The run is over: tie lists to the dims that they go with, and freeze what was picked from others.

        Returns:
            For the path of each list whose entries can go, a label for each entry.
        """
        for tensor in outputs:
            for followed, sets in self._places([self.of(tensor)]):
                if len(sets[0]) < followed.size:
                    followed.why = "the model returns what some of its entries made"
        self.evaluated()
        for followed in self._followed:
            if not (followed.why or _read_the_same([followed.outside.get(i, []) for i in range(followed.size)])):
                followed.why = "its entries do not all read the same"
        together = self._together()
        for members in together:
            if any(one.path for one in members) and not any(one.why for one in members):
                for one in members[1:]:
                    self._labels.tie(members[0].dim, one.dim, Reason("entries of a list"))
                continue
            for one in members:
                one.why = one.why or "what it goes with cannot go"
                for stays, reason in one.picked:
                    self._labels.freeze(stays, Reason(reason.text + self._about_lists(one), reason.where))
                if one.path:
                    self._labels.freeze(one.dim, Reason(one.why))
        return {one.path: one.dim for one in self._followed if one.path and not one.why}

    def forget_tensors(self) -> None:
        """Let go of all tensors."""
        self._own.clear()
        self._written.clear()
        self._numbers.forget_tensors()

    def _together(self) -> list[list[Followed]]:
        """Lists and dims whose places meet one to one; others must meet every place of each other, or none."""
        group = {one: [one] for one in self._followed}
        for (one, other), pairs in self._met.items():
            ours, theirs = ({pair[side] for pair in pairs} for side in (0, 1))
            if one.size == other.size and pairs == {(i, i) for i in range(one.size)}:
                if group[one] is not group[other]:
                    group[one] += group[other]
                    group.update(dict.fromkeys(group[other], group[one]))
            elif len(pairs) == 1 or pairs != set(product(ours, theirs)):
                for followed in (one, other):
                    followed.why = (
                        followed.why or "its entries do not meet the positions that the code picks one to one"
                    )
        return list({id(members): members for members in group.values()}.values())

    def _about_lists(self, followed: Followed) -> str:
        """Why the list cannot go whose entries meet what was picked."""
        lists = {other for pair in self._met if followed in pair for other in pair if other.path and other.why}
        return "".join(f"; {one.path}: {one.why}" for one in sorted(lists, key=lambda one: one.number)[:1])

    def _follow(self, dim: Integers, path: str = "") -> Followed:
        followed = Followed(len(self._followed), dim, path)
        self._followed.append(followed)
        self._at.update((label, (followed, place)) for place, label in enumerate(dim[0].tolist()))
        return followed

    def _places(self, parts: Iterable[Positions]) -> list[tuple[Followed, list[frozenset[int]]]]:
        """By list or dim, the places that each part has there."""
        found: dict[Followed, dict[int, set[int]]] = {}
        for number, part in enumerate(parts):
            for label in part:
                followed, place = self._at[label]
                found.setdefault(followed, {}).setdefault(number, set()).add(place)
        return [(one, list(map(frozenset, found[one].values()))) for one in sorted(found, key=lambda one: one.number)]


def _read_the_same(outside: Sequence[Sequence[tuple[str, tuple[int, ...]]]]) -> bool:
    """Whether all entries read the same besides what belongs to them, but for what a sum begins with."""
    common = min(outside, key=len, default=())
    for read in outside:
        left = iter(common)
        following = next(left, None)
        for one in read:
            if one == following:
                following = next(left, None)
            elif one[0] not in _FIRST:
                return False
        if following is not None:
            return False
    return True


def lists_of(model: nn.Module) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The lists of modules that could become shorter: each entry holds tensors that nothing else holds, and no other list.

    Returns:
        For the path of each list, for the path of each entry, what it holds, by name.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    held = holders(model)
    uses = Counter(
        id(t) for module in model.modules() for t in (*module._parameters.values(), *module._buffers.values())
    )
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or isinstance(module, ParametrizationList) or len(module) < 2:
            continue
        entries = {f"{path}.{key}".lstrip("."): entry for key, entry in module.named_children()}
        tensors = {
            one: {f"{one}.{name}": tensor for name, tensor in (*entry.named_parameters(), *entry.named_buffers())}
            for one, entry in entries.items()
        }
        alone = all(len(held[entry]) == 1 for entry in entries.values())
        inner = any(
            isinstance(one, nn.ModuleList) and len(one) > 1 for entry in entries.values() for one in entry.modules()
        )
        if (
            alone
            and not inner
            and all(mine and all(uses[id(tensor)] == 1 for tensor in mine.values()) for mine in tensors.values())
        ):
            found[path] = tensors
    return found
