"""Which operator of a run reads what which other wrote: the graph in which branches are found.

Operators have numbers from 0 in the order in which they ran; tensors that were there before have negative ones.
"""

import heapq
import linecache
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.utils.hooks import RemovableHandle

from secateur.torch.schema import operands, schema_of
from secateur.torch.structure import tensors_in

SUMS = frozenset({"add", "add_"})
_CHECKS = "_assert_tensor_metadata"
"""Reads no values."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: it ran the operators `start` to `stop - 1`.

    Attributes:
        path: The module's path.
        start: Its first operator.
        stop: The operator after its last one.
        results: The tensor it returned, or the tuple of tensors and None; `...` for anything else.
        arguments: Its tensors that were handed over by themselves, by `id`, with their numbers or names.
    """

    path: str
    start: int
    stop: int
    results: Any
    arguments: Mapping[int, str]


@dataclass(slots=True)
class Sum:
    """An addition of two tensors of the same shape and dtype as their sum.

    Attributes:
        number: The operator.
        sides: For each of the two, the operators that wrote it.
        where: The line of the user's code.
    """

    number: int
    sides: tuple[tuple[int, ...], tuple[int, ...]]
    where: str = ""


@dataclass(slots=True)
class Flow:
    """What was written down of a run.

    Attributes:
        reads: For each operator, what it reads.
        readers: For each operator or tensor, who reads it.
        contractions: For each operator the numbers of its contractions.
        nodes: For each operator, what the graph that runs it calls it, if one does.
        sums: The additions.
        calls: The calls of modules, inner ones first.
    """

    reads: list[tuple[int, ...]] = field(default_factory=list)
    readers: dict[int, list[int]] = field(default_factory=dict)
    contractions: list[range] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    sums: dict[int, Sum] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _written_by: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    _roots: dict[int, int] = field(default_factory=dict)
    _last_write: dict[int, int] = field(default_factory=dict)
    _last_read: dict[int, int] = field(default_factory=dict)
    _lasting: set[int] = field(default_factory=set)
    _open: list[tuple[str, int, Mapping[int, str]]] = field(default_factory=list)
    _hooks: list[RemovableHandle] = field(default_factory=list)
    _before: int = 0
    _code: CodeType | None = None

    def watch(self, model: nn.Module) -> None:
        """Note the calls of a model's modules from now on, until the run is over."""
        if isinstance(model, GraphModule):
            self._code = type(model).forward.__code__
        for path, module in model.named_modules():
            self._hooks += [
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, path=path: self._enter(path, args, kwargs), prepend=True, with_kwargs=True
                ),
                module.register_forward_hook(lambda _, __, out, path=path: self._leave(path, out)),
            ]

    def add(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, contractions: range
    ) -> Sum | None:
        """Note an operator that ran; returns it where it is a sum."""
        schema, number, tensors = schema_of(func), len(self.reads), operands((*args, *kwargs.values()))
        reads = tuple({source for tensor in tensors for source in self.sources(tensor)})
        written = [args[i] for i in schema.written if i < len(args) and isinstance(args[i], Tensor)]
        written += [kwargs[name] for i, name in enumerate(schema.arguments) if i in schema.written and name in kwargs]
        sides = [self.sources(tensor) for tensor in tensors[:2]]
        self.reads.append(reads)
        self.contractions.append(contractions)
        self.nodes.append(self._node())
        for source in reads:
            self.readers.setdefault(source, []).append(number)
        for tensor in tensors:
            self._last_read[id(tensor)] = number
        results = operands([out])
        if (not results and schema.name != _CHECKS) or any(self._root_number(tensor) < 0 for tensor in written):
            self._lasting.add(number)
        for tensor in results:
            self._written_by[id(tensor)] = (tensor, number)
        for i in schema.shared:
            base = args[i] if i < len(args) else None
            for tensor in results if isinstance(base, Tensor) else ():
                self._roots[id(tensor)] = self._roots.get(id(base), id(base))
        for tensor in written:
            self._last_write[self._roots.get(id(tensor), id(tensor))] = number
        if schema.name in SUMS and len(tensors) == 2 and _alike(*tensors, *results) and kwargs.get("alpha", 1) == 1:
            self.sums[number] = Sum(number, (sides[0], sides[1]))
            return self.sums[number]
        return None

    def finish(self, output: Any) -> None:
        """The run is over, and this is what it returned."""
        for hook in self._hooks:
            hook.remove()
        for tensor in tensors_in(output):
            self._lasting.update(self.sources(tensor))
            self._last_read[id(tensor)] = len(self.reads)

    def sources(self, tensor: Tensor) -> tuple[int, ...]:
        """Who wrote what is in a tensor: the operator that made it, and the last that wrote to its memory since."""
        known = self._written_by.get(id(tensor))
        if known is None:
            self._before -= 1
            known = self._written_by[id(tensor)] = (tensor, self._before)
        last = self._last_write.get(self._roots.get(id(tensor), id(tensor)), known[1])
        return (known[1],) if last <= known[1] else (known[1], last)

    def read_after(self, tensor: Tensor, number: int) -> bool:
        """Whether this operator or a later one reads the tensor."""
        return self._last_read.get(id(tensor), -1) >= number

    def unread(self) -> set[int]:
        """The operators that nothing comes of."""
        alive = set[int]()
        for number in reversed(range(len(self.reads))):
            if number in self._lasting or any(reader in alive for reader in self.readers.get(number, ())):
                alive.add(number)
        return set(range(len(self.reads))) - alive

    def serving(self, side: Collection[int], joint: int, unread: Collection[int]) -> set[int]:
        """The operators whose results serve only one side of a sum."""
        found: set[int] = set()
        todo = [-number for number in side if number >= 0]
        heapq.heapify(todo)
        seen = set(todo)
        while todo:
            number = -heapq.heappop(todo)
            readers = [reader for reader in self.readers[number] if reader not in unread]
            if number in self._lasting or not all(
                reader in found or (reader == joint and number in side) for reader in readers
            ):
                continue
            found.add(number)
            for source in self.reads[number]:
                if source >= 0 and -source not in seen:
                    seen.add(-source)
                    heapq.heappush(todo, -source)
        return found

    def comes_of(self, side: Iterable[int], origins: Collection[int]) -> bool:
        """Whether a side of a sum was made of any of these."""
        least = min(origins, default=0)
        todo = list(side)
        seen = set(todo)
        while todo:
            number = todo.pop()
            if number in origins:
                return True
            if number > least and number >= 0:
                new = [source for source in self.reads[number] if source >= least and source not in seen]
                seen.update(new)
                todo.extend(new)
        return False

    def _root_number(self, tensor: Tensor) -> int:
        """Who made the memory that a tensor lies in; negative where it was there before."""
        known = self._written_by.get(self._roots.get(id(tensor), id(tensor)))
        return known[1] if known else -1

    def _node(self) -> str:
        """The node of a graph that is running: its code is a line for each, `node = operator(...)`."""
        if self._code is None:
            return ""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        line = linecache.getline(self._code.co_filename, frame.f_lineno, frame.f_globals) if frame is not None else ""
        return line.partition("=")[0].partition(":")[0].strip()

    def _enter(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [*enumerate(args), *kwargs.items()]
        arguments = {id(value): str(name) for name, value in given if isinstance(value, Tensor)}
        self._open.append((path, len(self.reads), arguments))

    def _leave(self, path: str, out: Any) -> None:
        while self._open:
            opened, start, arguments = self._open.pop()
            if opened == path:
                self.calls.append(Call(path, start, len(self.reads), _results(out), arguments))
                return


def _alike(left: Tensor, right: Tensor, out: Tensor) -> bool:
    return left.shape == right.shape == out.shape and left.dtype == right.dtype == out.dtype and left is not right


def _results(out: Any) -> Any:
    """A tensor as itself, a tuple of tensors and None as it is, and `...` for all else."""
    if isinstance(out, Tensor) or (
        type(out) is tuple and all(item is None or isinstance(item, Tensor) for item in out)
    ):
        return out
    return ...
