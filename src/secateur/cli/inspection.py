"""What can be pruned of a model, what each unit of it costs, and what cannot be pruned and why."""

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.axes import Axis, Branch, Cost, Frozen, Network
from secateur.report.quantity import quantity, share

MOST_NAMES = 4
"""So many tensors are named in a row; `--json` has them all."""


@dataclass(frozen=True, slots=True)
class AxisCost:
    """An axis, and what goes with it.

    Attributes:
        axis: The axis.
        unit: What one unit costs while all others are there.
        whole: What depends on the axis: the network's cost less what it costs with no unit of it.
    """

    axis: Axis
    unit: Cost
    whole: Cost


@dataclass(frozen=True, slots=True)
class BranchCost:
    """A branch that can be removed whole, and what goes with it."""

    branch: Branch
    cost: Cost


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `secateur inspect` found.

    Attributes:
        name: The model's name.
        total: What the network costs.
        axes: What can be pruned, in the order in which the network meets it.
        branches: What can be removed whole, by the numbers that a plan takes.
        frozen: What cannot: all positions with one reason at one place of the code together.
    """

    name: str
    total: Cost
    axes: tuple[AxisCost, ...]
    branches: tuple[BranchCost, ...]
    frozen: tuple[tuple[Frozen, ...], ...]

    @classmethod
    def of(cls, name: str, network: Network) -> "Inspection":
        """Look at a network."""
        total = network.cost()
        axes = tuple(
            AxisCost(
                axis, _less(total, network.cost({axis.name: axis.size - 1})), _less(total, network.cost({axis.name: 0}))
            )
            for axis in network.axes
        )
        branches = tuple(BranchCost(branch, network.branch_cost(i)) for i, branch in enumerate(network.branches))
        groups: dict[tuple[str, str], list[Frozen]] = {}
        for item in network.frozen:
            groups.setdefault((item.reason, item.where), []).append(item)
        return cls(name, total, axes, branches, tuple(tuple(items) for items in groups.values()))

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "model": self.name,
            "cost": _numbers(self.total),
            "axes": [
                {
                    "name": one.axis.name,
                    "units": one.axis.size,
                    "kind": one.axis.kind,
                    "exact": one.axis.exact,
                    "unit_cost": _numbers(one.unit),
                    "cost": _numbers(one.whole),
                    "slots": [{"tensor": s.tensor, "dim": s.dim, "positions": s.positions} for s in one.axis.slots],
                }
                for one in self.axes
            ],
            "branches": [
                {"name": one.branch.name, "where": one.branch.where, "cost": _numbers(one.cost)}
                for one in self.branches
            ],
            "frozen": [
                {"tensor": f.tensor, "dim": f.dim, "positions": f.count, "reason": f.reason, "where": f.where}
                for items in self.frozen
                for f in items
            ],
        }

    def __rich__(self) -> RenderableType:
        """What a terminal shows."""
        parts: list[RenderableType] = [_head(self), ""]
        if self.axes:
            parts += [_axes(self), "", FOOTNOTE, "", _together(self)]
        else:
            parts.append(Text("Nothing can be pruned.", style="yellow"))
        if self.branches:
            parts += ["", _branches(self)]
        return Group(*parts, "", _frozen(self)) if self.frozen else Group(*parts)


FOOTNOTE = Text(
    "A unit's cost is what goes with it while all others are there; an axis' share is what depends on it. Shares overlap, "
    "because a product has two sides.",
    style="dim",
)


def _head(inspection: Inspection) -> Text:
    count, total = len(inspection.axes), inspection.total
    units = sum(one.axis.size for one in inspection.axes)
    return Text.assemble(
        (inspection.name, "bold"),
        f": {count:,} {'axis' if count == 1 else 'axes'} with {units:,} units; {total.parameters:,} parameters, "
        f"{total.macs:,} MACs, {quantity(total.bytes, 'B')}",
    )


def _axes(inspection: Inspection) -> Table:
    table = _titled("What can be pruned")
    table.add_column("axis", overflow="fold", ratio=1)
    table.add_column("kind", no_wrap=True)
    for heading in (
        "units",
        "parameters\na unit",
        "MACs\na unit",
        "bytes\na unit",
        "of all\nparameters",
        "of all\nMACs",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    total = inspection.total
    for one in inspection.axes:
        table.add_row(
            Text(one.axis.name) if one.axis.exact else Text.assemble(one.axis.name, (" normalised", "yellow")),
            one.axis.kind,
            f"{one.axis.size:,}",
            quantity(one.unit.parameters),
            quantity(one.unit.macs),
            quantity(one.unit.bytes, "B"),
            share(one.whole.parameters, total.parameters) if total.parameters else "",
            share(one.whole.macs, total.macs) if total.macs else "",
        )
    return table


def _together(inspection: Inspection) -> Table:
    table = _titled("What goes together")
    table.add_column("axis", overflow="fold")
    table.add_column("runs through", overflow="fold", style="dim", ratio=1)
    for one in inspection.axes:
        modules = dict.fromkeys(slot.tensor.rpartition(".")[0] or slot.tensor for slot in one.axis.slots)
        table.add_row(Text(one.axis.name), Text(_first(list(modules))))
    return table


def _branches(inspection: Inspection) -> Table:
    table = _titled("What can be removed whole, because it is added to what goes on without it")
    table.add_column("branch", overflow="fold", ratio=1)
    table.add_column("joins at", overflow="fold", ratio=1, style="cyan")
    for heading in ("parameters", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, one in enumerate(inspection.branches):
        costs = (quantity(one.cost.parameters), quantity(one.cost.macs))
        table.add_row(Text(f"{number} {one.branch.name}"), Text(one.branch.where), *costs)
    return table


def _frozen(inspection: Inspection) -> Table:
    table = _titled("What cannot be pruned")
    table.add_column("reason, and the line that decides it", overflow="fold", ratio=1)
    table.add_column("concerns", overflow="fold", ratio=1, style="dim")
    for items in inspection.frozen:
        reason, where = items[0].reason, items[0].where
        table.add_row(
            Text(reason).append(f"\n  {where}" if where else "", style="cyan"),
            Text(_first([f"{item.tensor}:{item.dim}" for item in items])),
        )
    return table


def _titled(title: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", expand=True,
        title=title, title_justify="left", title_style="bold underline",
    )  # fmt: skip


def _first(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _less(cost: Cost, without: Cost) -> Cost:
    return Cost(cost.parameters - without.parameters, cost.macs - without.macs, cost.bytes - without.bytes)


def _numbers(cost: Cost) -> dict[str, int]:
    return {"parameters": cost.parameters, "macs": cost.macs, "bytes": cost.bytes}
