"""Which operators multiply data with a parameter, and what each of them reads and writes: linear layers and convolutions.

They are recognised as ATen operators whose weight is a parameter, or a view of one (by identity), so that a model's own
functional calls, packed projections cut by `chunk`, weights stored as `[in, out]`, and matrices of a stack count like torch's
layers. An operator that multiplies with all matrices of a stack is as many products, one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.torch.inference import refuse_inference_mode
from secateur.torch.windows import Window, pixels, spread

_aten = torch.ops.aten
_WEIGHT = {_aten.mm.default: 1, _aten.addmm.default: 2, _aten.convolution.default: 1}
"""The operators that are products, and which of their arguments the weight is."""
_STACKED = (_aten.bmm.default, _aten._grouped_mm.default)
"""Those that multiply with each matrix of a stack: as many rows with each, or rows up to an end for each."""


@dataclass(frozen=True, slots=True)
class Product:
    """Data times a parameter: out = weight @ in, for every row of data (a token, or a window of an image).

    Two are the same where they use the same part of a parameter alike. Whether the operator adds the bias too is no part of that:
    torch lets another one do so where the data lie otherwise in memory.

    Attributes:
        tensor: The parameter that holds the weight.
        in_dim: The parameter's dim that is summed over.
        out_dim: The parameter's dim that the output has.
        start: Where along `out_dim` the part that is used begins; packed projections use a part in each product.
        size: How long that part is.
        groups: Input and output channels come in so many groups that see nothing of each other.
        window: The geometry of a convolution; None for a linear layer.
        bias: The parameter that is added to the output, or None.
        bias_start: Where in the bias the part that is used begins; in its row, where it is stacked like the weight.
        stack: Which matrix it is of a parameter that is a stack of them, along dim 0; None where the parameter is a single one.
    """

    tensor: str
    in_dim: int
    out_dim: int
    start: int
    size: int
    groups: int = 1
    window: Window | None = None
    bias: str | None = field(default=None, compare=False)
    bias_start: int = field(default=0, compare=False)
    stack: int | None = None

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as matrices `[groups, out, features]`; a feature is an input channel at a tap of the kernel."""
        if self.window is None:
            return self._part(weight)[None]
        taps = _flipped(weight).transpose(0, 1) if self.window.transposed else weight
        return taps.reshape(self.groups, taps.shape[0] // self.groups, -1)

    def operand(self, weight: Tensor) -> Tensor:
        """The weight as the operator takes it: `[in, out]` of a linear layer, and as it is of a convolution."""
        return weight if self.window is not None else self._part(weight).T

    def put(self, matrix: Tensor, weight: Tensor) -> None:
        """Write matrices `[groups, out, features]` into the weight, in place: the inverse of `matrix`."""
        with torch.no_grad():
            if self.window is None:
                self._part(weight).copy_(matrix[0])
            elif self.window.transposed:
                taps = matrix.reshape(weight.shape[1], weight.shape[0], *weight.shape[2:])
                weight.copy_(_flipped(taps.transpose(0, 1)))
            else:
                weight.copy_(matrix.reshape(weight.shape))

    def read(self, x: Tensor, at_most: int | None = None) -> Tensor:
        """What the product reads of its input: `[groups, rows, features]`, at most so many rows, spread evenly."""
        if self.window is None:
            return _rows(x, at_most)[None]
        rows = self.window.rows(x, at_most)
        return rows.reshape(rows.shape[0], self.groups, -1).transpose(0, 1)

    def channels(self, y: Tensor, at_most: int | None = None) -> Tensor:
        """What the product writes for the same rows, `[groups, rows, out]`; or its input by pixel, `[groups, rows, in]`."""
        if self.window is None:
            return _rows(y, at_most)[None]
        rows = pixels(y, at_most)
        return rows.reshape(rows.shape[0], self.groups, -1).transpose(0, 1)

    def _part(self, weight: Tensor) -> Tensor:
        """What a linear layer uses of its weight, `[out, in]`, as a view."""
        part = weight.narrow(self.out_dim, self.start, self.size)
        part = part if self.stack is None else part[self.stack]
        return part if self.in_dim > self.out_dim else part.T


def _rows(x: Tensor, at_most: int | None) -> Tensor:
    """At most so many rows, spread evenly."""
    return x if at_most is None or len(x) <= at_most else x[spread(len(x), at_most).to(x.device)]


class Visit(Protocol):
    """What to do when a product comes by."""

    def __call__(self, product: Product, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Look at the product's input, run it, and give back its output.

        Args:
            product: Which product it is.
            x: Its input: `[rows, in]` of a linear layer, `[batch, channels, ...]` of a convolution.
            run: Computes the output, `[rows, out]` or `[batch, out, ...]`; with another tensor in the parameter's place, where
                one is given.

        Returns:
            The output.
        """
        ...


class WatchProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows each product of data with a parameter to a visitor, while a model runs.

    Args:
        model: Whose parameters count.
        visit: What to do with each product.

    Attributes:
        others: The parameters that other operators used.
        largest: The most bytes that an operator wrote.
    """

    def __init__(self, model: nn.Module, visit: Visit) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        refuse_inference_mode(model)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._visit = visit
        self.others: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stacked = None if kwargs else self._stacked(func, args)
        if stacked is not None:
            return self._one_by_one(*stacked)
        found = None if kwargs else self._found(func, args)
        if found is None:
            if not func.is_view:
                leaves = pytree.tree_leaves((args, kwargs))
                self.others.update(
                    name for x in leaves if isinstance(x, Tensor) and (name := self._name(x)) is not None
                )
            y = func(*args, **(kwargs or {}))
            if isinstance(y, Tensor) and not func.is_view:
                self.largest = max(self.largest, y.nbytes)
            return y
        product, x = found

        def run(weight: Tensor | None = None) -> Tensor:
            if weight is None:
                return func(*args)  # type: ignore[no-any-return]
            place = _WEIGHT[func]
            return func(*args[:place], product.operand(weight), *args[place + 1 :])  # type: ignore[no-any-return]

        return self._visit(product, x, run)

    def _found(self, func: Any, args: Any) -> tuple[Product, Tensor] | None:
        match func:
            case _aten.mm.default:
                return self._linear(args[0], args[1], None)
            case _aten.addmm.default:
                return self._linear(args[1], args[2], args[0])
            case _aten.convolution.default:
                return self._convolution(*args)
            case _:
                return None

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Product, Tensor] | None:
        """`x [rows, in] @ weight [in, out]`."""
        product = self._of_matrix(weight, weight.shape, weight.stride(), bias)
        return None if product is None else (product, x)

    def _of_matrix(
        self, weight: Tensor, shape: Sequence[int], stride: Sequence[int], bias: Tensor | None = None
    ) -> Product | None:
        """The product with a matrix `[in, out]` that begins where a view of a parameter does, as it is or transposed."""
        base, name = _base(weight), self._name(weight)
        if name is None or base.ndim not in (2, 3) or not base.is_contiguous() or not base.numel():
            return None
        rows, columns = base.shape[-2:]
        number, offset = divmod(int(weight.storage_offset() - base.storage_offset()), rows * columns)
        stack, (first, second) = (None, (0, 1)) if base.ndim == 2 else (number, (1, 2))
        if tuple(stride) == (1, columns) and shape[0] == columns and offset // columns + shape[1] <= rows:
            return Product(name, second, first, offset // columns, shape[1], 1, None, *self._vector(bias), stack)
        if tuple(stride) == (columns, 1) and shape[0] == rows and offset + shape[1] <= columns:
            return Product(name, first, second, offset, shape[1], 1, None, *self._vector(bias), stack)
        return None

    def _stacked(self, func: Any, args: Any) -> tuple[Product, Tensor, Tensor, Sequence[int]] | None:
        """The first product of an operator with a whole stack, its data, the stack, and where the rows of each product end."""
        if func not in _STACKED or args[1].ndim != 3 or any(arg is not None for arg in args[3:]):
            return None
        x, weights, offsets = (*args, None)[:3]
        product, base = self._of_matrix(weights, weights.shape[1:], weights.stride()[1:]), _base(weights)
        if (
            product is None
            or product.stack != 0
            or weights.shape[0] != len(base)
            or weights.stride(0) != base.stride(0)
        ):
            return None
        ends = [x.shape[1] * (number + 1) for number in range(len(x))] if offsets is None else offsets.tolist()
        return product, x, weights, ends

    def _one_by_one(self, first: Product, x: Tensor, weights: Tensor, ends: Sequence[int]) -> Tensor:
        """Show the product with each matrix of a stack to the visitor. Rows behind the last end are zero."""
        *reads, rest = x.reshape(-1, x.shape[-1]).tensor_split(ends)

        def shown(number: int) -> Tensor:
            product = replace(first, stack=number)

            def run(weight: Tensor | None = None) -> Tensor:
                return reads[number] @ (weights[number] if weight is None else product.operand(weight))

            return self._visit(product, reads[number], run)

        y = torch.cat([*map(shown, range(len(weights))), rest.new_zeros(len(rest), weights.shape[2])])
        self.largest = max(self.largest, y.nbytes)
        return y.view(*x.shape[:-1], weights.shape[2])

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> tuple[Product, Tensor] | None:
        name, images = self._names.get(id(weight)), weight.ndim - 2
        if name is None or (transposed and groups > 1):
            return None
        sizes = [tuple(n) * images if len(n) == 1 else tuple(n) for n in (stride, padding, dilation, output_padding)]
        window = Window(tuple(weight.shape[2:]), sizes[0], sizes[1], sizes[2], transposed, sizes[3])
        in_dim, out_dim = (0, 1) if transposed else (1, 0)
        return Product(name, in_dim, out_dim, 0, weight.shape[out_dim], groups, window, *self._vector(bias)), x

    def _vector(self, bias: Tensor | None) -> tuple[str | None, int]:
        """The parameter that a bias is, or is a part of, and where that part begins."""
        if bias is None:
            return None, 0
        base = _base(bias)
        start = int(bias.storage_offset() - base.storage_offset())
        return self._name(bias), start % base.shape[1] if base.ndim == 2 else start

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or is a view of."""
        return self._names.get(id(_base(tensor)))


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _flipped(weight: Tensor) -> Tensor:
    return weight.flip(tuple(range(2, weight.ndim)))
