"""Which tensors of a run hold the same values, because the same operators made them of the same tensors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class Numbers:
    """Numbers for values: equal ones are of equal values."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._writes: dict[int, int] = {}
        self._codes: dict[object, int] = {}

    def of(self, tensor: Tensor, memory: int) -> int:
        """The number of what a tensor holds now.

        Args:
            tensor: It.
            memory: A number for the memory that it lies in.
        """
        known = self._known.get(id(tensor))
        if known is None:
            known = self._known[id(tensor)] = (tensor, self._code(("given", id(tensor))))
        return self._code((known[1], self._writes[memory])) if memory in self._writes else known[1]

    def ran(
        self,
        name: str,
        arguments: Mapping[str, Any],
        operands: Sequence[int],
        results: Iterable[Tensor],
        written: Iterable[int],
        seeded: bool,
    ) -> None:
        """An operator ran on operands with these numbers, and wrote to these memories; what is `seeded` differs each time."""
        plain = pytree.tree_map_only(Tensor, lambda _: "tensor", dict(arguments))
        code = self._code((name, str(plain), tuple(operands), len(self._codes) if seeded else 0))
        for place, result in enumerate(results):
            self._known[id(result)] = (result, self._code((code, place)))
        for memory in written:
            self._writes[memory] = code

    def forget_tensors(self) -> None:
        """Let go of all tensors."""
        self._known.clear()

    def _code(self, key: object) -> int:
        return self._codes.setdefault(key, len(self._codes))
