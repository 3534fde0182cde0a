"""Whether what is written to rows of a tensor comes to the same in whatever order it is written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from secateur.torch.schema import operands

READS, WRITES = frozenset({"index"}), frozenset({"index_put", "index_put_impl"})
"""What `out[rows] += more` consists of, but for the sum."""

_STAYS_APART = frozenset({"nonzero", "unbind", "squeeze", "view", "to_copy", "clone", "alias"})


class Rows:
    """Follows rows that are read to be written back with something added, and rows that no two entries of a list share.

    Args:
        number: The number of what a tensor holds.
        root: A number for the memory of a tensor.
    """

    def __init__(self, number: Callable[[Tensor], int], root: Callable[[Tensor], int]) -> None:
        self._number, self._root = number, root
        self._read: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
        self._apart: dict[int, Tensor] = {}

    def keep_apart(self, mask: Tensor) -> None:
        """Where this mask is true, that of another entry is not."""
        self._apart[id(mask)] = mask

    def ran(self, name: str, moves: bool, arguments: Mapping[str, Any], results: Sequence[Tensor]) -> None:
        """An operator ran; see `Entries.ran`."""
        given = operands(arguments.values())
        if name in READS:
            indices = operands([arguments["indices"]])
            read = (self._root(arguments["input"]), *map(self._number, indices))
            self._read.update((id(result), (result, read)) for result in results)
        elif (name == "add" and arguments.get("alpha", 1) == 1) or moves:
            found = next((self._read[id(tensor)][1] for tensor in given if id(tensor) in self._read), None)
            if found is not None:
                self._read.update((id(result), (result, found)) for result in results)
        if name in _STAYS_APART and given and id(given[0]) in self._apart:
            self._apart.update((id(result), result) for result in results)

    def commutes(self, arguments: Mapping[str, Any]) -> bool:
        """Whether rows are written that no other entry writes, or with something added to what they were."""
        if arguments.get("accumulate"):
            return True
        indices = operands([arguments["indices"]])
        if indices and all(id(index) in self._apart for index in indices):
            return True
        read = self._read.get(id(arguments["values"]))
        return read is not None and read[1] == (self._root(arguments["input"]), *map(self._number, indices))
