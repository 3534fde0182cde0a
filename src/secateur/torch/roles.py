"""Which parts dims play in operators: products with weights, products of computed tensors, additions of branches, lookups."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from secateur.axes import Dim, Dims, Labels, Role

_ADDITIONS = frozenset({"add", "sub", "rsub", "lerp", "addcmul"})
_RECURRENT = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
)


class Roles:
    """Marks dims with their roles, and keeps what that takes: which tensors are computed, and from what.

    Every product, lookup and input gets a number, and so does what combines several of them. A tensor has the number of what
    wrote the memory it lies in; weights, constants and what is made of these alone have none.

    Args:
        labels: Where the roles are written down.
        root: A number for the memory of a tensor.
        function: The function of torch that is being called.
    """

    def __init__(self, labels: Labels, root: Callable[[Tensor], int], function: Callable[[], str]) -> None:
        self._labels, self._root, self._function = labels, root, function
        self._parents: list[tuple[int, ...]] = []
        self._written_by: dict[int, int] = {}
        self._sums: dict[int, Dim] = {}
        self._writes: bool = False
        self._sum: Dim | None = None

    def mark(self, role: Role, *dims: Dim) -> None:
        """The running operator has a part for these dims."""
        for dim in dims:
            self._labels.mark(role, dim)

    def input(self, tensor: Tensor) -> None:
        """The model is given this tensor."""
        self._written_by[self._root(tensor)] = self._new(())

    def product(
        self, left: Tensor, right: Tensor, rows: Dim, summed: Dim, columns: Dim, batch: Dim | None = None
    ) -> None:
        """`left [batch, rows, summed] @ right [batch, summed, columns]`."""
        self._writes = True
        computed = [self._writer(tensor) is not None for tensor in (left, right)]
        if all(computed):
            self.mark(Role.OUTER, rows, columns)
            self._sum = summed
            if isinstance(batch, np.ndarray):
                self.mark(Role.BATCH, batch)
                self.mark(Role.INNER, summed)
            return
        self.mark(Role.READ, summed)
        for tensor_is_computed, dim in zip(computed, (rows, columns), strict=True):
            if not tensor_is_computed:
                self.mark(Role.WRITTEN, dim)
                if self._function() in _RECURRENT:
                    self.mark(Role.RECURRENT, dim)
        if batch is not None:
            self.mark(Role.GROUPED, batch)

    def convolution(self, read: Dim, written: Dim, groups: Dim | None) -> None:
        """A convolution from channels to channels; groups that read and write several channels each."""
        self._writes = True
        self.mark(Role.CONVOLVED, read, written)
        self.mark(Role.READ, read)
        self.mark(Role.WRITTEN, written)
        if groups is not None:
            self.mark(Role.GROUPED, groups)

    def lookup(self, width: Sequence[Dim]) -> None:
        """Rows of a table are looked up by index."""
        self._writes = True
        self.mark(Role.LOOKED_UP, *width)

    def softmax(self, input: Tensor, dim: Dim) -> None:
        """A softmax along `dim`; what the products sum over that wrote its input is the width of an attention's queries."""
        self.mark(Role.CHOSEN, dim)
        todo = [number for number in [self._writer(input)] if number is not None]
        while todo:
            number = todo.pop()
            if number in self._sums:
                self.mark(Role.INNER, self._sums[number])
            elif len(self._parents[number]) > 1:
                todo.extend(self._parents[number])

    def pointwise(self, operator: str, tensors: Iterable[Tensor], dims: Dims) -> None:
        """An element-wise operator; an addition may join a branch to what it branched off from."""
        if operator.removesuffix("_") in _ADDITIONS:
            numbers = sorted({number for t in tensors if t.ndim and (number := self._writer(t)) is not None})
            if any(self._descends(numbers[i], first) for i in range(len(numbers)) for first in numbers[:i]):
                self.mark(Role.JOINED, *dims)

    def ran(self, results: Iterable[Tensor], operands: Iterable[Tensor]) -> None:
        """The running operator computed these results from these operands; single numbers do not count."""
        parents = tuple({number: None for t in operands if t.ndim and (number := self._writer(t)) is not None})
        if self._writes or len(parents) > 1:
            number = self._new(parents)
            if self._sum is not None:
                self._sums[number] = self._sum
        elif parents:
            number = parents[0]
        else:
            return
        self._writes, self._sum = False, None
        for result in results:
            self._written_by[self._root(result)] = number

    def _writer(self, tensor: Tensor) -> int | None:
        return self._written_by.get(self._root(tensor))

    def _new(self, parents: tuple[int, ...]) -> int:
        self._parents.append(parents)
        return len(self._parents) - 1

    def _descends(self, number: int, first: int) -> bool:
        """Whether what has this number was computed from what has an earlier one."""
        todo, seen = [number], {number}
        while todo:
            for parent in self._parents[todo.pop()]:
                if parent == first:
                    return True
                if parent > first and parent not in seen:
                    seen.add(parent)
                    todo.append(parent)
        return False
