"""A network as a table for people: its axes, and what is frozen, grouped by reason."""

from secateur.axes import BRANCHES, Axis, Frozen, Network


def describe(network: Network) -> str:
    """What `print(network)` shows; branches only where they are known already, for to look for them takes runs of the model."""
    cost = network.cost()
    head = (
        f"{len(network.axes)} axes with {network.unit_count:,} units; "
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs, {cost.bytes:,} bytes"
    )
    rows = [("axis", "units", "kind", "exact", "lives in"), *map(_row, network.axes)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:<{widths[3]}}  {e}" for a, b, c, d, e in rows]
    return "\n".join([head, "", *table, "", *_branches(network), *_frozen(network)])


def _row(axis: Axis) -> tuple[str, str, str, str, str]:
    slots = [str(slot) + (f" x{slot.positions}" if slot.positions > 1 else "") for slot in axis.slots]
    shown = ", ".join(slots[:4]) + (f", and {len(slots) - 4} more" if len(slots) > 4 else "")
    return axis.name, str(axis.size), axis.kind, "yes" if axis.exact else "no", shown


def _branches(network: Network) -> list[str]:
    """What can be removed whole, numbered as `network.plan({"branches": ...})` takes it."""
    if not network.knows_branches or not network.branches:
        return []
    every = range(len(network.branches))
    rows = [(BRANCHES, "parameters", "MACs", "goes with", "joins at")]
    for number, branch in enumerate(network.branches):
        cost = network.branch_cost(number)
        outer = [str(n) for n in every if number in network.branches[n].within]
        rows.append(
            (f"{number} {branch.name}", f"{cost.parameters:,}", f"{cost.macs:,}", ", ".join(outer) or "-", branch.where)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        *(
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:<{widths[3]}}  {e}".rstrip()
            for a, b, c, d, e in rows
        ),
        "",
    ]


def _frozen(network: Network) -> list[str]:
    groups: dict[tuple[str, str], list[Frozen]] = {}
    for item in network.frozen:
        groups.setdefault((item.reason, item.where), []).append(item)
    places: dict[str, list[str]] = {}
    for branch in network.frozen_branches if network.knows_branches else ():
        places.setdefault(branch.reason, []).append(branch.where)
    lines = ["frozen:"] if groups or places else []
    for (reason, where), items in groups.items():
        tensors = [_place(item, network.tensors[item.tensor].shape[item.dim]) for item in items]
        shown = ", ".join(tensors[:3]) + (f", and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        lines.append(f"  {reason}{f' ({where})' if where else ''}: {shown}")
    for reason, lines_of_code in places.items():
        more = len(lines_of_code) - 3
        shown = ", ".join(lines_of_code[:3]) + (f", and {more} more" if more > 0 else "")
        lines.append(f"  branches: {reason}: {shown}")
    return lines


def _place(item: Frozen, size: int) -> str:
    """A dim of a tensor, and how many of its positions are meant where they are not all."""
    return f"{item.tensor}:{item.dim}" + (f" ({item.count} of {size})" if item.count < size else "")
