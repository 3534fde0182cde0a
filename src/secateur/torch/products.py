"""Which operators multiply data with a parameter, and what each of them reads and writes: linear layers and convolutions.

They are recognised as ATen operators whose weight is a parameter, or a view of one (by identity), so that a model's own functional
calls, packed projections cut by `chunk`, and weights stored as `[in, out]` count like torch's layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a convolution, one number for each image axis.

    Attributes:
        kernel: The size of the kernel.
        stride: Steps between windows; of a transposed convolution, between what one window writes.
        padding: Zeros added at both ends.
        dilation: Steps between the taps of a kernel.
        transposed: Whether it is a transposed convolution.
        output_padding: What a transposed convolution adds to the end of its output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Product:
    """Data times a parameter: out = weight @ in, for every row of data (a token, or a window of an image).

    Attributes:
        tensor: The parameter that holds the weight.
        in_dim: The parameter's dim that is summed over.
        out_dim: The parameter's dim that the output has.
        start: Where along `out_dim` the part that is used begins; packed projections use a part in each product.
        size: How long that part is.
        groups: Input and output channels come in so many groups that see nothing of each other.
        window: The geometry of a convolution; None for a linear layer.
        bias: The parameter that is added to the output, or None.
        bias_start: Where in the bias the part that is used begins.
    """

    tensor: str
    in_dim: int
    out_dim: int
    start: int
    size: int
    groups: int = 1
    window: Window | None = None
    bias: str | None = None
    bias_start: int = 0

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as matrices `[groups, out, features]`; a feature is an input channel at a tap of the kernel."""
        if self.window is None:
            part = weight.narrow(self.out_dim, self.start, self.size)
            return (part if self.in_dim == 1 else part.T)[None]
        if not self.window.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        image = tuple(range(2, weight.ndim))
        taps = weight.flip(image).unflatten(0, (self.groups, -1)).transpose(1, 2)
        return taps.flatten(3).flatten(2) if taps.ndim > 3 else taps

    def put(self, matrix: Tensor, weight: Tensor) -> None:
        """Write matrices `[groups, out, features]` into the weight, in place: the inverse of `matrix`."""
        matrix = matrix.to(weight)
        with torch.no_grad():
            if self.window is None:
                part = weight.narrow(self.out_dim, self.start, self.size)
                part.copy_(matrix[0] if self.in_dim == 1 else matrix[0].T)
            elif not self.window.transposed:
                weight.copy_(matrix.reshape(weight.shape))
            else:
                taps = matrix.unflatten(2, (-1, *self.window.kernel)).transpose(1, 2).flatten(0, 1)
                weight.copy_(taps.flip(tuple(range(2, weight.ndim))))

    def read(self, x: Tensor, rows: int | None = None) -> Tensor:
        """What the product reads of its input: `[groups, rows, features]`, at most `rows` of them, spread evenly."""
        if self.window is None:
            picked = _spread(x.shape[0], rows, x.device)
            return (x if picked is None else x[picked])[None]
        windows = _windows(x, self.window)
        images = windows.ndim // 2 - 1
        grid = (windows.shape[0], *windows.shape[2 : 2 + images])
        taken = windows[_unravel(grid, rows, x.device)]
        return taken.reshape(taken.shape[0], self.groups, -1).transpose(0, 1)

    def written(self, y: Tensor, rows: int | None = None) -> Tensor:
        """What the product writes for the same rows: `[groups, rows, out]`."""
        if self.window is None:
            picked = _spread(y.shape[0], rows, y.device)
            return (y if picked is None else y[picked])[None]
        taken = y[_unravel((y.shape[0], *y.shape[2:]), rows, y.device)]
        return taken.reshape(taken.shape[0], self.groups, -1).transpose(0, 1)


class Visit(Protocol):
    """What to do when a product comes by."""

    def __call__(self, product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Look at the product's input, run it, and give back its output.

        Args:
            product: Which product it is.
            x: Its input: `[rows, in]` of a linear layer, `[batch, channels, ...]` of a convolution.
            run: Computes the output, `[rows, out]` or `[batch, out, ...]`.

        Returns:
            The output.
        """
        ...


class WatchProducts(TorchDispatchMode):
    """Shows each product of data with a parameter to a visitor, as a model runs.

    Args:
        model: Whose parameters count.
        visit: What to do with each product.
    """

    def __init__(self, model: nn.Module, visit: Visit) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._visit = visit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._found(func, args) if not kwargs else None
        if found is None:
            return func(*args, **kwargs)
        product, x = found
        return self._visit(product, x, lambda: func(*args))

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
        """`x [rows, in] @ weight [in, out]`, where the weight is a view of a parameter as it is or transposed."""
        base = weight if weight._base is None else weight._base
        name = self._names.get(id(base))
        if name is None or base.ndim != 2 or not base.is_contiguous():
            return None
        offset, (rows, columns) = weight.storage_offset() - base.storage_offset(), base.shape
        known, start = self._vector(bias)
        if weight.stride() == (1, columns) and weight.shape[0] == columns:
            return Product(name, 1, 0, offset // columns, weight.shape[1], bias=known, bias_start=start), x
        if weight.stride() == (columns, 1) and weight.shape[0] == rows:
            return Product(name, 0, 1, offset, weight.shape[1], bias=known, bias_start=start), x
        return None

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *rest: Any
    ) -> tuple[Product, Tensor] | None:
        transposed, output_padding, groups = rest
        name = self._names.get(id(weight))
        if name is None:
            return None
        in_dim, out_dim = (0, 1) if transposed else (1, 0)
        images = weight.ndim - 2
        window = Window(
            tuple(weight.shape[2:]),
            *((tuple(n) * images)[:images] if len(n) == 1 else tuple(n) for n in (stride, padding, dilation)),
            transposed=transposed,
            output_padding=tuple(output_padding),
        )
        known, start = self._vector(bias)
        product = Product(name, in_dim, out_dim, 0, weight.shape[out_dim], groups, window, known, start)
        return product, x

    def _vector(self, bias: Tensor | None) -> tuple[str | None, int]:
        if bias is None:
            return None, 0
        base = bias if bias._base is None else bias._base
        return self._names.get(id(base)), bias.storage_offset() - base.storage_offset()


def _windows(x: Tensor, window: Window) -> Tensor:
    """All windows of an image, as a view `[batch, channels, *positions, *kernel]`."""
    padding = [(p, p) for p in window.padding]
    stride = window.stride
    if window.transposed:
        x = _spaced(x, stride)
        spans = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
        padding = [(s - p, s - p + o) for s, p, o in zip(spans, window.padding, window.output_padding, strict=True)]
        stride = (1,) * len(stride)
    x = F.pad(x, [n for pair in reversed(padding) for n in pair])
    for i, (kernel, step, dilation) in enumerate(zip(window.kernel, stride, window.dilation, strict=True)):
        x = x.unfold(2 + i, dilation * (kernel - 1) + 1, step)[..., ::dilation]
    return x


def _spaced(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Zeros between the pixels, as many as a transposed convolution's stride puts there."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spaced = x.new_zeros(*x.shape[:2], *sizes)
    spaced[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return spaced


def _unravel(grid: tuple[int, ...], rows: int | None, device: torch.device) -> tuple[Any, ...]:
    """An index that takes rows out of `[batch, channels, *positions, ...]` as `[rows, channels, ...]`."""
    total = 1
    for n in grid:
        total *= n
    picked = _spread(total, rows, device)
    batch, *places = torch.unravel_index(torch.arange(total, device=device) if picked is None else picked, grid)
    return (batch, slice(None), *places)


def _spread(total: int, rows: int | None, device: torch.device) -> Tensor | None:
    """At most `rows` of `total` positions: one from each of as many equal stretches, at random but always the same.

    Evenly spaced ones would all fall on the same column of an image.
    """
    if rows is None or total <= rows:
        return None
    jitter = torch.rand(rows, generator=torch.Generator().manual_seed(total), dtype=torch.float64)
    return ((torch.arange(rows) + jitter) * (total / rows)).long().clamp_max(total - 1).to(device)
