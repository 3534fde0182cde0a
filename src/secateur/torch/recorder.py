"""What a watched run knows about tensors: the labels of each dim, and whether removed positions are zero there.

The recorder is what the operator rules talk to. Labels survive aliasing by themselves: a write through a view ties positions that
the view shares with its base, so the base needs no update.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from secateur.axes import (
    ONE,
    Comparison,
    Dim,
    Dims,
    Expression,
    Fixed,
    Integers,
    Labels,
    Operation,
    Reason,
    Run,
    SizeUse,
    TensorSpec,
    Width,
)
from secateur.axes.sizes import attributes_of, evaluate, widths_of
from secateur.torch.entries import Entries
from secateur.torch.places import running
from secateur.torch.provenance import WatchSizes
from secateur.torch.roles import Roles
from secateur.torch.size import Tracker

INPUT = Fixed(Reason("the model's input"))

_CHECKS_SIZES = frozenset({"multi_head_attention_forward", "native_channel_shuffle"})
_CHECKS_PLACES = frozenset({"one_hot"})
_LEAVE_TORCH = frozenset({"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"})


@dataclass(frozen=True, slots=True)
class Pointer:
    """What the values of a tensor say about a dim: a router's choice is places on the dim of experts.

    Attributes:
        tensor: Whose values they are.
        dim: The dim that they are about.
        meaning: They are places on it, or the ends of the runs of rows that belong to each of its positions, in order.
        reason: Why the dim must stay if they are used as mere numbers.
    """

    tensor: Tensor
    dim: Integers
    meaning: Literal["places", "ends"]
    reason: Reason


class Recorder:
    """Labels of tensors, by identity, while a model runs.

    Args:
        state: The parameters and buffers of the (copied) model, each under its first name.
        paths: The path of each module, by `id(module)`.
    """

    def __init__(self, state: Mapping[str, Tensor], paths: Mapping[int, str]) -> None:
        self.run = Run()
        self.paths = paths
        self.operator = ""
        self.result_zero: bool | None = None
        self._where: str | None = None
        self._known: dict[int, tuple[Tensor, Dims, bool]] = {}
        self._pointers: dict[int, Pointer] = {}
        self._root: dict[int, int] = {}
        self._not_zero: set[int] = set()
        self._read: set[int] = set()
        self.tracker = Tracker(self._value_used, self._compared)
        self.sizes = WatchSizes(self.dims, self._before_call, self._after_call, self.tracker)
        self.entries = Entries(self.labels, self._root_of, self.where)
        self.roles = Roles(self.labels, self._root_of, lambda: self.sizes.name)
        for name, tensor in state.items():
            dims = tuple(self.labels.fresh(n) for n in tensor.shape)
            parameter = isinstance(tensor, nn.Parameter)
            self.run.tensors[name] = (TensorSpec(tuple(tensor.shape), tensor.element_size(), parameter), dims)
            self.learn(tensor, dims, zero=parameter)

    @property
    def labels(self) -> Labels:
        """The algebra of this run."""
        return self.run.labels

    def learn(self, tensor: Tensor, dims: Dims, zero: bool) -> None:
        """Remember what the dims of `tensor` stand for, and whether removed positions are zero in it once masked."""
        assert len(dims) == tensor.ndim, f"{len(dims)} dims for a tensor of {tensor.ndim}"
        self._known[id(tensor)] = (tensor, dims, zero)

    def forget_tensors(self) -> None:
        """Let go of all tensors: what they stood for is written down."""
        self._known.clear()
        self._pointers.clear()
        self.entries.forget_tensors()

    def dims(self, tensor: Tensor) -> Dims:
        """What each dim of `tensor` stands for."""
        known = self._known.get(id(tensor))
        return known[1] if known else self.constant(tensor.shape)

    def known(self, tensor: Tensor) -> Dims | None:
        """What each dim of `tensor` stands for, where a rule has said so."""
        known = self._known.get(id(tensor))
        return known[1] if known else None

    def zero(self, tensor: Tensor) -> bool:
        """Whether removed positions of `tensor` are zero in the masked model."""
        known = self._known.get(id(tensor))
        return bool(known and known[2]) and self._root_of(tensor) not in self._not_zero

    def shares(self, view: Tensor, base: Tensor) -> None:
        """`view` lies in the memory of `base`."""
        self._root[id(view)] = self._root_of(base)

    def written(self, tensor: Tensor) -> None:
        """Something that need not be zero was written to the memory of `tensor`."""
        self._not_zero.add(self._root_of(tensor))

    def was_read(self, tensor: Tensor) -> bool:
        """Whether some operator met the tensor."""
        return id(tensor) in self._read

    def reason(self, text: str) -> Reason:
        """`text`, with the place in the user's code that is running."""
        return Reason(text, self.where())

    def constant(self, shape: Sequence[int]) -> Dims:
        """The dims of a tensor that the code makes; with the line that is running, which makes it or meets it."""
        if all(n == 1 for n in shape):
            return (ONE,) * len(shape)
        made = Fixed(self.reason("a constant of the code"))
        return tuple(ONE if n == 1 else made for n in shape)

    @property
    def checks_places(self) -> bool:
        """Whether a function of torch runs that looks, of places on a dim, whether they lie there."""
        return self.sizes.name in _CHECKS_PLACES

    def begin(self, operator: str) -> None:
        """The next operator passes."""
        self.operator, self.result_zero = operator, None
        self.entries.begin()

    def where(self) -> str:
        """The line of the user's code, and the module, that are running now; looked up once for each call into torch."""
        if self._where is None or not self.sizes.frames:
            self._where = running(self.paths)
        return self._where

    def size(self, value: int, dim: Dim, negative: bool = False, less: int = 0) -> Expression | None:
        """The running operator received `value` as the size of `dim`: it must follow when `dim` shrinks.

        Args:
            value: The number it received.
            dim: The positions whose number it is.
            negative: It is minus that number (a slice's bound counted from the end).
            less: It is so much less than that number (the last place).

        Returns:
            Where the number came from; None where torch computed it from the tensors, so that it follows by itself.
        """
        expression = self.sizes.take(value)
        if expression is None:
            return None
        if isinstance(dim, Fixed):
            if not isinstance(expression, int):
                self._pin(expression)
        elif isinstance(expression, int):
            self.labels.freeze(dim, self.reason(f"its size is written as the number {value}"))
        else:
            signed = Operation("-", 0, expression) if negative else expression
            whole = Operation("+", signed, less) if less else signed
            self.run.uses.append(SizeUse(whole, dim, self.where()))
        return expression

    def contraction(self, sizes: Sequence[int], dims: Sequence[Dim], factor: int = 1) -> None:
        """The running operator multiplies and adds over the product of these dims."""
        for size, dim in zip(sizes, dims, strict=True):
            factor *= size if isinstance(dim, Fixed) else 1
        self.run.contractions.append((factor, tuple(d for d in dims if isinstance(d, np.ndarray)), self.where()))

    def sum_over(self, dim: Dim, exact: bool) -> None:
        """The running operator sums over `dim`; exact where removed positions contribute nothing."""
        if not exact:
            self.labels.mark_normalised(dim)

    def spare(self, tensor: Tensor, dim: int) -> None:
        """Masking must not zero the parameter behind `tensor` along `dim`: its norm divides something."""
        wanted = self.dims(tensor)[dim]
        for name, (spec, dims) in self.run.tensors.items():
            found = [d for d, known in enumerate(dims) if known is wanted and isinstance(known, np.ndarray)]
            if spec.parameter and found:
                self.run.spared[name] = tuple(sorted({*self.run.spared.get(name, ()), *found}))

    def point(self, tensor: Tensor, dim: Dim, reason: Reason, meaning: Literal["places", "ends"] = "places") -> None:
        """The values of `tensor` (the index of a maximum, say) are about `dim`: it must stay if anything computes with them."""
        if isinstance(dim, np.ndarray):
            self._pointers[id(tensor)] = Pointer(tensor, dim, meaning, reason)

    def pointee(self, tensor: Tensor, meaning: Literal["places", "ends"] = "places") -> Integers | None:
        """The dim that the values of `tensor` are places on, or ends of runs."""
        pointer = self._pointers.get(id(tensor))
        return pointer.dim if pointer and pointer.meaning == meaning else None

    def points(self, tensor: Tensor) -> bool:
        """Whether the values of `tensor` are about a dim."""
        return id(tensor) in self._pointers

    def moved(self, source: Tensor, results: Iterable[Tensor]) -> None:
        """The results hold values of `source`."""
        if pointer := self._pointers.get(id(source)):
            for result in results:
                self.point(result, pointer.dim, pointer.reason, pointer.meaning)

    def met(self, tensor: Tensor) -> None:
        """An operator takes `tensor`."""
        self._read.add(id(tensor))

    def used(self, *tensors: Tensor) -> None:
        """Something computes with the values of these tensors, or nobody knows what they are used for."""
        for tensor in tensors:
            if pointer := self._pointers.get(id(tensor)):
                self.labels.freeze(pointer.dim, pointer.reason)

    def freeze_all(self, tensors: Sequence[Tensor], text: str) -> Reason:
        """Freeze whatever these tensors carry."""
        reason = self.reason(text)
        self.used(*tensors)
        for tensor in tensors:
            for dim in self.dims(tensor):
                self.labels.freeze(dim, reason)
        return reason

    def _root_of(self, tensor: Tensor) -> int:
        """A number for the memory that a tensor lies in."""
        return self._root.get(id(tensor), id(tensor))

    def _value_used(self, expression: Expression) -> None:
        """Only the value counts here: a width stays, and what is made of several sizes comes out as before."""
        if isinstance(expression, Width):
            self.labels.freeze(expression.dim, self.reason("the code computes with this size as a number"))
        else:
            self._pin(expression)

    def _compared(self, symbol: str, left: Expression, right: Expression, outcome: bool) -> None:
        """A check that a dim has the size an attribute says is an equation; any other comparison must keep its outcome."""
        equal = outcome if symbol == "==" else not outcome if symbol == "!=" else False
        for width, other in ((left, right), (right, left)):
            if equal and isinstance(width, Width) and attributes_of(other) and not any(True for _ in widths_of(other)):
                self.run.uses.append(SizeUse(other, width.dim, self.where()))
                return
        self.run.comparisons.append(Comparison(symbol, left, right, outcome, self.where()))

    def _pin(self, expression: Expression) -> None:
        """The value of this expression must not change."""
        value = evaluate(expression, {a: a.value for a in attributes_of(expression)}, lambda dim: dim.shape[1])
        self.run.comparisons.append(Comparison("==", expression, value, True, self.where(), "computes with"))

    def _before_call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What a call does to labels that no operator shows."""
        self._where = None
        if name in _LEAVE_TORCH:
            self.freeze_all([arg for arg in args if isinstance(arg, Tensor)], f"its values leave torch by {name}")
        elif name in _CHECKS_SIZES:
            tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
            self.freeze_all(tensors, f"torch's {name} takes these sizes as numbers")
        elif name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            query = kwargs["query"] if "query" in kwargs else args[0]
            reason = self.reason("attention's default scale depends on this width; pass scale= to free it")
            self.labels.freeze(self.dims(query)[-1], reason)

    def _after_call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Functions that take their sizes from another tensor tie the result to it."""
        if name in {"layer_norm", "rms_norm"}:  # which torch may take apart into operators that see no such sizes
            shape = kwargs["normalized_shape"] if "normalized_shape" in kwargs else args[1]
            for size, dim in zip(shape, self.dims(out)[-len(shape) :], strict=True):
                self.size(size, dim)
        elif name in {"expand_as", "view_as", "reshape_as"}:
            self._tie_all(out, args[1])
        elif name in {"broadcast_tensors", "meshgrid"}:
            for other in out[1:]:
                self._tie_all(out[0], other)

    def _tie_all(self, left: Tensor, right: Tensor) -> None:
        for ours, theirs in zip(self.dims(left), self.dims(right), strict=True):
            self.labels.tie(ours, theirs, self.reason("tied"))
