"""Finds the branches of a watched model, and what of the model goes with each: modules, or the nodes of a graph."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn
from torch.fx import GraphModule

from secateur.axes import Branch, Branches, Contraction, FrozenBranch, Joint, Network, Removal, StandIn
from secateur.axes.branches import branch_name
from secateur.torch.flow import Call, Flow, Sum
from secateur.torch.places import line_in

Trial = Callable[[Sequence["Unit"]], None]
"""Runs the model without the modules of these units, and notes in each whether that works."""

ADVICE = "trace secateur.as_graph(model, ...) instead, where it can go"


@dataclass(slots=True, eq=False)
class Unit:
    """Branches that go together, because they share modules; nearly always one.

    Attributes:
        sums: Where they join, and which side of each goes.
        inside: The operators that serve nothing else.
        calls: The outermost calls of modules that something takes the place of.
        stand_ins: By the paths of these modules, what their stand-ins return.
        last: Among their paths, those whose zeros join.
        reason: Why they cannot go; empty where they can.
    """

    sums: list[tuple[Sum, int]]
    inside: set[int]
    calls: list[Call] = field(default_factory=list)
    stand_ins: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    last: frozenset[str] = frozenset()
    reason: str = ""

    @property
    def where(self) -> str:
        """The line of the user's code where the first of them joins."""
        return self.sums[0][0].where

    def holds(self, other: "Unit") -> bool:
        """Whether another unit lies within this one."""
        return other is not self and all(one.number in self.inside for one, _ in other.sums)


def branches_of(network: Network, flow: Flow, model: nn.Module, state: Mapping[str, Tensor], trial: Trial) -> Branches:
    """Find the branches of a network.

    Args:
        network: The network.
        flow: What was written down of the run.
        model: The model that ran.
        state: Its parameters and buffers by name, each once.
        trial: Tries out modules without which the model may run.
    """
    unread = flow.unread()
    tensors = {source[0]: name for name, tensor in state.items() if (source := flow.sources(tensor))}
    units = [
        Unit([(one, side)], inside)
        for one, side in _joins(flow)
        if (inside := flow.serving(one.sides[side], one.number, unread))
        and any(_is_parameter(tensors, state, source) for number in inside for source in flow.reads[number])
    ]
    if not units:
        return Branches()
    form: _Graph | _Modules
    if isinstance(model, GraphModule):
        form = _Graph(flow, tensors, unread, model)
    else:
        form = _Modules(flow, tensors, unread, model, network.contractions)
    units = form.united(units)
    if isinstance(form, _Modules):
        _choose_modules(form, units, trial)
    found = [unit for unit in units if not unit.reason]
    removals = [form.removal(unit) for unit in found]
    removable = tuple(
        Branch(
            branch_name({name: prod(network.tensors[name].shape) for name in removal.tensors}),
            unit.where,
            removal,
            tuple(sorted(n for number in form.operators(unit) for n in flow.contractions[number])),
            tuple(i for i, other in enumerate(found) if unit.holds(other)),
        )
        for unit, removal in zip(found, removals, strict=True)
    )
    frozen = tuple(FrozenBranch(unit.where, unit.reason) for unit in units if unit.reason)
    return Branches(removable, frozen)


def _is_parameter(tensors: Mapping[int, str], state: Mapping[str, Tensor], source: int) -> bool:
    return source in tensors and isinstance(state[tensors[source]], nn.Parameter)


def _joins(flow: Flow) -> Iterator[tuple[Sum, int]]:
    """The sums of which a side was made of what the other side, or the sum that it is part of, brings along."""
    apart = set[int]()
    for one in flow.sums.values():
        joins = [
            side
            for side in (0, 1)
            if not set(one.sides[side]) & set(one.sides[1 - side])
            and not apart.issuperset(one.sides[side])
            and flow.comes_of(one.sides[side], _stream(flow, one, one.sides[1 - side]))
        ]
        yield from ((one, side) for side in joins)
        if len(joins) == 2:  # they go one by one
            apart.add(one.number)


def _stream(flow: Flow, one: Sum, stays: tuple[int, ...]) -> set[int]:
    """What a side of a sum stands for: itself, and what it is a sum of, and what is added to the sum at once."""
    found, todo = set[int](), [max(stays)]
    while flow.readers.get(one.number) and len(flow.readers[one.number]) == 1:
        above = flow.sums.get(flow.readers[one.number][0])
        if above is None:
            break
        todo += [max(side) for side in above.sides if one.number not in side]
        one = above
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            if number in flow.sums:
                todo += [max(side) for side in flow.sums[number].sides]
    return found


class _Graph:
    """Branches of a model that is a graph: its nodes go."""

    def __init__(self, flow: Flow, tensors: Mapping[int, str], unread: set[int], model: GraphModule) -> None:
        self.flow, self.tensors, self.unread = flow, tensors, unread
        self.traces = {node.name: node.stack_trace or "" for node in model.graph.nodes}
        self.runs: dict[str, list[int]] = {}
        for number, node in enumerate(flow.nodes):
            self.runs.setdefault(node, []).append(number)

    def united(self, units: list[Unit]) -> list[Unit]:
        """Each by itself; sums that are only a part of a node are none."""
        for unit in units:
            (one, _), *_ = unit.sums
            one.where = one.where or line_in(self.traces[self.flow.nodes[one.number]])
        return [unit for unit in units if len(self.runs[self.flow.nodes[unit.sums[0][0].number]]) == 1]

    def operators(self, unit: Unit) -> Collection[int]:
        """The operators that go with a unit."""
        return [number for node in self._nodes(unit) for number in self.runs[node]]

    def removal(self, unit: Unit) -> Removal:
        """What goes with a unit."""
        (one, side), inside = unit.sums[0], set(self.operators(unit))
        joint = Joint(self.flow.nodes[one.number], side, tuple(self._nodes(unit)))
        return Removal(joints=(joint,), tensors=_only_read_by(self.flow, self.tensors, inside))

    def _nodes(self, unit: Unit) -> list[str]:
        nodes = dict.fromkeys(self.flow.nodes[number] for number in sorted(unit.inside))
        return [node for node in nodes if all(n in unit.inside or n in self.unread for n in self.runs[node])]


class _Modules:
    """Branches of a model that is made of modules: these get a stand-in."""

    def __init__(
        self,
        flow: Flow,
        tensors: Mapping[int, str],
        unread: set[int],
        model: nn.Module,
        contractions: Sequence[Contraction],
    ) -> None:
        self.flow, self.tensors, self.unread, self.contractions = flow, tensors, unread, contractions
        self.calls = sorted(flow.calls, key=lambda call: (call.start, -call.stop, call.path.count(".")))
        self.starts = [call.start for call in self.calls]
        self.by_path: dict[str, list[Call]] = {}
        for call in self.calls:
            self.by_path.setdefault(call.path, []).append(call)
        self.holders: dict[int, set[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.holders.setdefault(flow.sources(tensor)[0], set()).add(path)
        self.holding: dict[str, set[int]] = {}
        for number, paths in self.holders.items():
            for path in paths:
                for end in (*(i for i, letter in enumerate(path) if letter == "."), len(path)):
                    self.holding.setdefault(path[:end], set()).add(number)

    def united(self, units: list[Unit]) -> list[Unit]:
        """Units whose modules run in several of them are one."""
        owner = {unit: unit for unit in units}

        def first(unit: Unit) -> Unit:
            while owner[unit] is not unit:
                unit = owner[unit]
            return unit

        by_size = sorted(units, key=lambda unit: len(unit.inside))
        for unit in units:
            for call in self._within(unit):
                for other in self.by_path[call.path] if call.path in self.holding else ():
                    if not self._is_within(other, unit):
                        home = next((u for u in by_size if self._is_within(other, u)), unit)
                        owner[first(home)] = first(unit)
        groups: dict[Unit, list[Unit]] = {}
        for unit in units:
            groups.setdefault(first(unit), []).append(unit)
        return [
            Unit([s for unit in group for s in unit.sums], set().union(*(unit.inside for unit in group)))
            for group in groups.values()
        ]

    def choose(self, unit: Unit, *, holding: bool) -> str:
        """Choose the calls that something takes the place of; returns why that is not possible, or nothing.

        Args:
            unit: Whose.
            holding: Take only modules that hold parameters or buffers.
        """
        unit.calls, stop = [], -1
        for call in self._within(unit):
            if call.start >= stop and (call.path in self.holding or not holding) and self._can_go(call, unit):
                unit.calls.append(call)
                stop = call.stop
        unit.stand_ins = {call.path: _results(self.flow, call) for call in unit.calls}
        covered = set(self.operators(unit))
        for number in sorted(unit.inside - covered):
            if self.flow.contractions[number]:
                where = self.contractions[self.flow.contractions[number][0]].where
                return f"what multiplies at {where} is in no module that serves it alone"
        if not _only_read_by(self.flow, self.tensors, covered):
            return "none of its modules holds its parameters"
        return ""

    def operators(self, unit: Unit) -> Collection[int]:
        """The operators that go with a unit."""
        return [number for call in unit.calls for number in range(call.start, call.stop)]

    def removal(self, unit: Unit) -> Removal:
        """What goes with a unit."""
        stand_ins = [StandIn(path, results, path in unit.last) for path, results in unit.stand_ins.items()]
        held = sorted({number for path in unit.stand_ins for number in self.holding.get(path, ())}, reverse=True)
        return Removal(modules=tuple(stand_ins), tensors=tuple(self.tensors[number] for number in held))

    def _within(self, unit: Unit) -> list[Call]:
        """The calls all of whose operators serve a unit alone, outer ones first."""
        low, high = min(unit.inside), max(unit.inside) + 1
        near = self.calls[bisect_left(self.starts, low) : bisect_left(self.starts, high)]
        return [call for call in near if self._is_within(call, unit)]

    def _is_within(self, call: Call, unit: Unit) -> bool:
        numbers = range(call.start, call.stop)
        return any(n in unit.inside for n in numbers) and all(n in unit.inside or n in self.unread for n in numbers)

    def _can_go(self, call: Call, unit: Unit) -> bool:
        """Whether something can take the place of a module: all its calls are here, and nobody else needs what it has."""
        here = all(self._is_within(other, unit) for other in self.by_path[call.path])
        same = len({str(_results(self.flow, other)) for other in self.by_path[call.path]}) == 1
        if not here or not same or _results(self.flow, call) == ("",):
            return False
        return all(
            all(path == call.path or path.startswith(f"{call.path}.") for path in self.holders[number])
            and all(reader in unit.inside or reader in self.unread for reader in self.flow.readers.get(number, ()))
            for number in self.holding.get(call.path, ())
        )


def _choose_modules(form: _Modules, units: list[Unit], trial: Trial) -> None:
    """Choose the modules of each unit so that the model runs without them: all that can go, or those that hold something."""
    levels: dict[int, list[Unit]] = {}
    for unit in units:
        levels.setdefault(sum(other.holds(unit) for other in units), []).append(unit)
    for level in levels.values():
        todo = level
        for holding in (False, True):
            tried = []
            for unit in todo:
                before, known = unit.calls, unit.reason
                unit.reason = form.choose(unit, holding=holding)
                if unit.calls == before:
                    unit.reason = unit.reason or known
                elif not unit.reason:
                    tried.append(unit)
            if tried:
                trial(tried)
            todo = [unit for unit in todo if unit.reason]
    for unit in units:
        if unit.reason:
            unit.reason = f"{unit.reason}; {ADVICE}"


def _results(flow: Flow, call: Call) -> tuple[str, ...] | None:
    """What a stand-in returns; `("",)` where it cannot."""
    if isinstance(call.results, Tensor):
        return None
    if not isinstance(call.results, tuple):
        return ("",)
    items = []
    for item in call.results:
        if item is None or not flow.read_after(item, call.stop):
            items.append("none")
        elif id(item) in call.arguments:
            items.append(call.arguments[id(item)])
        elif min(flow.sources(item)) >= call.start:
            items.append("zeros")
        else:
            return ("",)
    return tuple(items)


def _only_read_by(flow: Flow, tensors: Mapping[int, str], operators: Collection[int]) -> tuple[str, ...]:
    """The parameters and buffers that only these operators read."""
    return tuple(
        name
        for number, name in tensors.items()
        if flow.readers.get(number) and all(reader in operators for reader in flow.readers[number])
    )
