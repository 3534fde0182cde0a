"""Lists of modules, entry by entry: experts that code goes through in a loop are units of an axis, and go whole.

The list is a slot like any other: a dim as long as it has entries, at each position of which a module stands, and not a number.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from secateur.axes.blocks import Integers
from secateur.axes.branches import Removal


@dataclass(frozen=True, slots=True)
class ModuleList:
    """A list of modules while a network is watched.

    Attributes:
        dim: A label for each of its entries.
        entries: For the path of each entry, in order, the parameters and buffers that it holds.
    """

    dim: Integers
    entries: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A module in a list, which goes with a unit.

    Attributes:
        module: Its path.
        unit: Which unit, among all units of the network.
        tensors: The parameters and buffers that it holds.
    """

    module: str
    unit: int
    tensors: tuple[str, ...]


def removal_of_entries(entries: Sequence[Entry], gone: Collection[int]) -> Removal:
    """What goes with these units."""
    found = [entry for entry in entries if entry.unit in gone]
    return Removal(
        entries=tuple(entry.module for entry in found),
        tensors=tuple(name for entry in found for name in entry.tensors),
    )
