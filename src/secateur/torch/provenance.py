"""Watches the calls into torch: tags the shapes they return, and knows which sizes the caller computed from what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from secateur.axes import Dims, Expression, Operation, Width
from secateur.torch.size import Size, Tracker

_ALL, _AFTER_TENSOR = slice(0, None), slice(1, None)

TAKES_SIZES: Mapping[str, tuple[slice, *tuple[str, ...]]] = {
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn"), (_ALL, "size")),
    **dict.fromkeys(("view", "reshape", "expand", "broadcast_to", "repeat", "tile"), (_AFTER_TENSOR, "size")),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "__getitem__", "__setitem__"), (_AFTER_TENSOR, "size")),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), (slice(1, 2), "split_size")),
    **dict.fromkeys(("layer_norm", "rms_norm"), (slice(1, 2), "normalized_shape")),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (slice(6, 7), "groups")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (slice(6, 7), "groups")),
    "arange": (slice(0, 2), "end"),
    "full": (slice(0, 1), "size"),
    "histc": (slice(1, 4), "bins", "max"),
    "one_hot": (slice(1, 2), "num_classes"),
    "new_full": (slice(1, 2), "size"),
    "narrow": (slice(2, 4), "length"),
    "slice": (slice(2, 4), "end"),
    "convolution": (slice(8, 9), "groups"),
    "unflatten": (slice(2, 3), "sizes"),
    "repeat_interleave": (slice(1, 2), "repeats"),
    "group_norm": (slice(1, 2), "num_groups"),
}
"""Functions to which the caller hands sizes: the positional arguments that hold them, or their keywords.

All others compute their sizes from the tensors; a `Size` that is handed to them is used as a number.
"""

_INFERS = frozenset({"view", "reshape", "unflatten", "expand", "broadcast_to"})
"""Functions that work out for themselves what -1 stands for."""

_COUNTS = frozenset({"__len__", "stride"})
"""Methods that return plain numbers made of a tensor's sizes, and Python keeps nothing else."""

_SHAPE: Any = Tensor.shape.__get__  # type: ignore[attr-defined]


class FromTensor(int):
    """A size that the caller read from a tensor: some plain number."""


@dataclass(slots=True)
class Frame:
    """One call into torch.

    Attributes:
        name: The function.
        sizes: The sizes that the caller handed over, in order, None for one that torch adds; those that an operator has received
            are dropped.
        passed_over: Those that no operator received, although it received a later one.
    """

    name: str
    sizes: list[int | None]
    passed_over: list[int | None] = field(default_factory=list)

    def take(self, value: int) -> Expression | None:
        """Where `value` came from: an expression, a plain number of the caller's, or None: torch computed it itself."""
        for i, size in enumerate(self.sizes):
            if size is None or isinstance(size, FromTensor) or int.__eq__(size, value):
                self.passed_over += self.sizes[:i]
                del self.sizes[: i + 1]
                return size.expression if isinstance(size, Size) else value if isinstance(size, FromTensor) else size
        return None


class WatchSizes(TorchFunctionMode):
    """Tags shapes, and keeps the frame of the call that is under way.

    Args:
        dims_of: What each dim of a tensor stands for.
        before: Called with the function's name and its arguments before each call.
        after: Called with the function's name, its arguments and its result after each call.
        tracker: Where the tagged sizes report to.
    """

    def __init__(
        self,
        dims_of: Callable[[Tensor], Dims],
        before: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
        after: Callable[[str, tuple[Any, ...], dict[str, Any], Any], None],
        tracker: Tracker,
    ) -> None:
        super().__init__()
        self.dims_of, self.before, self.after, self.tracker = dims_of, before, after, tracker
        self.frames: list[Frame] = []

    def take(self, value: int) -> Expression | None:
        """Where a size that the current operator received came from; None where torch computed it."""
        return self.frames[-1].take(value) if self.frames else None

    def is_literal(self, value: int) -> bool:
        """Whether the caller wrote a number that the current operator received: it came from no attribute and no tensor."""
        sizes = self.frames[-1].sizes if self.frames else []
        given = next((size for size in sizes if size is not None and int.__eq__(size, value)), None)
        return type(given) is int

    @property
    def name(self) -> str:
        """The function that is being called."""
        return self.frames[-1].name if self.frames else ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name == "__get__" and func == _SHAPE:
            return self._tagged(args[0], func(*args))
        if name in _COUNTS:
            self._counted(args[0], name)
        if name in ("numel", "nelement"):
            return self._product(args[0], func(*args, **kwargs))
        if name in ("size", "sym_size"):
            result = func(*args, **kwargs)
            whole = isinstance(result, torch.Size)
            return self._tagged(args[0], result) if whole else self._tagged_one(args, kwargs, result)
        self.frames.append(Frame(name, []))
        try:
            self.before(name, args, kwargs)
            self.frames[-1].sizes += self._sizes(name, args, kwargs)
            result = func(*args, **kwargs)
            self.after(name, args, kwargs, result)
            self._used_otherwise(self.frames[-1])
            return result
        finally:
            self.frames.pop()

    def _used_otherwise(self, frame: Frame) -> None:
        """A size that no operator received as one was used as a number: an index, a step, how often to repeat."""
        for size in (*frame.passed_over, *frame.sizes):
            if isinstance(size, Size):
                self.tracker.value_used(size.expression)

    def _sizes(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int | None]:
        """The sizes among the arguments; every other `Size` is used as a number."""
        where, *keywords = TAKES_SIZES.get(name, (slice(0, 0),))
        chosen = (*args[where], *(kwargs[keyword] for keyword in keywords if keyword in kwargs))
        sizes: list[int | None] = list(_numbers(chosen))
        if name in _INFERS:
            sizes = [None if size is not None and int.__eq__(size, -1) else size for size in sizes]
        sizes = [*[None] * _sizes_before(name, args, kwargs), *sizes]
        others = [*args[: where.start], *args[where.stop :]] if where.stop is not None else args[: where.start]
        named = [value for key, value in kwargs.items() if key not in keywords]
        for number in _numbers((*others, *named)):
            if isinstance(number, Size):
                self.tracker.value_used(number.expression)
        return sizes

    def _counted(self, tensor: Tensor, name: str) -> None:
        """A number that depends on widths, and cannot remember it."""
        for dim in self.dims_of(tensor)[: 1 if name == "__len__" else None]:
            if isinstance(dim, np.ndarray):
                self.tracker.value_used(Width(dim))

    def _product(self, tensor: Tensor, value: int) -> int:
        """How many numbers a tensor holds: the product of its sizes."""
        dims = self.dims_of(tensor)
        if len(dims) != tensor.ndim or not any(isinstance(dim, np.ndarray) for dim in dims):
            return value
        product: Expression = 1
        for size, dim in zip(tensor.shape, dims, strict=True):
            product = Operation("*", product, Width(dim) if isinstance(dim, np.ndarray) else int(size))
        return Size(value, product, self.tracker)

    def _tagged(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        dims = self.dims_of(tensor)
        if len(dims) != len(shape):
            return shape  # a wrapper of another tensor, inside torch.vmap say
        return torch.Size([self._size(n, dim) for n, dim in zip(shape, dims, strict=True)])

    def _tagged_one(self, args: Any, kwargs: Any, value: int) -> int:
        index, dims = kwargs["dim"] if "dim" in kwargs else args[1], self.dims_of(args[0])
        return self._size(value, dims[plain(index)]) if len(dims) == args[0].ndim else value

    def _size(self, value: int, dim: object) -> int:
        return Size(value, Width(dim), self.tracker) if isinstance(dim, np.ndarray) else value


def name_of(func: Any) -> str:
    """The name of a function of torch; of an operator without its overload."""
    return func._schema.name.removeprefix("aten::") if isinstance(func, OpOverload) else getattr(func, "__name__", "")


def _sizes_before(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many sizes torch puts before those of the caller, in what it hands to its operators."""
    position = {"unflatten": 1, "repeat_interleave": 2}.get(name)
    if position is None:
        return 0
    dim = kwargs.get("dim", args[position] if len(args) > position else None)
    return 2 if dim is None else int(dim) % args[0].ndim + (name == "repeat_interleave")


def plain(value: int) -> int:
    """A number as a plain one, without telling its tracker."""
    return int.__add__(value, 0)


def _numbers(values: Any) -> Iterator[int]:
    """All integers in nested arguments, in order."""
    for value in values:
        if isinstance(value, (bool, Tensor)):
            continue
        if isinstance(value, int):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _numbers(value)
        elif isinstance(value, slice):
            bounds = (value.start, value.stop, value.step)
            yield from _numbers(FromTensor() if isinstance(bound, Tensor) else bound for bound in bounds)
