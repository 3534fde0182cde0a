"""A network as a table for people: its axes, and what is frozen, grouped by reason."""

from collections.abc import Iterable

from secateur.axes import Axis, Frozen, Network


def describe(network: Network) -> str:
    """What `print(network)` shows."""
    cost = network.cost()
    head = (
        f"{len(network.axes)} axes with {network.unit_count:,} units; "
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs, {cost.bytes:,} bytes"
    )
    rows = [("axis", "units", "kind", "exact", "lives in"), *map(_row, network.axes)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:<{widths[3]}}  {e}" for a, b, c, d, e in rows]
    return "\n".join([head, "", *table, "", *_frozen(network.frozen)])


def _row(axis: Axis) -> tuple[str, str, str, str, str]:
    slots = [str(slot) + (f" x{slot.positions}" if slot.positions > 1 else "") for slot in axis.slots]
    shown = ", ".join(slots[:4]) + (f", and {len(slots) - 4} more" if len(slots) > 4 else "")
    return axis.name, str(axis.size), axis.kind, "yes" if axis.exact else "no", shown


def _frozen(frozen: Iterable[Frozen]) -> list[str]:
    groups: dict[tuple[str, str], list[Frozen]] = {}
    for item in frozen:
        groups.setdefault((item.reason, item.where), []).append(item)
    lines = ["frozen:"] if groups else []
    for (reason, where), items in groups.items():
        tensors = [f"{item.tensor}:{item.dim}" for item in items]
        shown = ", ".join(tensors[:3]) + (f", and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        lines.append(f"  {reason}{f' ({where})' if where else ''}: {shown}")
    return lines
