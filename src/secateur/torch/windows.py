"""The windows of an image that a convolution multiplies with its kernel, as rows of numbers."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


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
    transposed: bool
    output_padding: tuple[int, ...]

    def rows(self, x: Tensor, at_most: int | None) -> Tensor:
        """What the kernel meets of an image `[batch, channels, ...]`: `[rows, channels, *kernel]`, at most so many rows."""
        windows = self._windows(x)
        images = len(self.kernel)
        grid = (windows.shape[0], *windows.shape[2 : 2 + images])
        return _taken(windows, grid, at_most)

    def _windows(self, x: Tensor) -> Tensor:
        """All windows, as a view `[batch, channels, *places, *kernel]`; row-major places, as in the output."""
        stride, ends = self.stride, [(p, p) for p in self.padding]
        if self.transposed:
            # The same as an ordinary convolution of the image with zeros between its pixels, by the flipped kernel.
            spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            x, stride = _spaced(x, self.stride), (1,) * len(stride)
            ends = [(s - p, s - p + o) for s, p, o in zip(spans, self.padding, self.output_padding, strict=True)]
        x = F.pad(x, [n for pair in reversed(ends) for n in pair])
        for i, (kernel, step, dilation) in enumerate(zip(self.kernel, stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, dilation * (kernel - 1) + 1, step)[..., ::dilation]
        return x


def pixels(y: Tensor, at_most: int | None) -> Tensor:
    """The pixels of an image `[batch, channels, ...]` as `[rows, channels]`, the same ones as `Window.rows` takes."""
    return _taken(y, (y.shape[0], *y.shape[2:]), at_most)


def spread(total: int, at_most: int | None) -> Tensor:
    """At most so many of `total` positions: one from each of as many equal stretches, at random but always the same.

    Evenly spaced ones could all fall on the same column of an image.

    Example:
        >>> spread(4, at_most=9).tolist(), len(set(spread(100, at_most=30).tolist()))
        ([0, 1, 2, 3], 30)
    """
    if at_most is None or total <= at_most:
        return torch.arange(total)
    starts = torch.arange(at_most + 1) * total // at_most
    jitter = torch.rand(at_most, generator=torch.Generator().manual_seed(total), dtype=torch.float64)
    return starts[:-1] + (jitter * starts.diff()).long()


def _taken(x: Tensor, grid: tuple[int, ...], at_most: int | None) -> Tensor:
    """Rows at some places of `[batch, channels, *places, ...]`: `[rows, channels, ...]`."""
    batch, *places = torch.unravel_index(spread(prod(grid), at_most).to(x.device), grid)
    index: tuple[Tensor | slice, ...] = (batch, slice(None), *places)
    return x[index]


def _spaced(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The image with zeros between its pixels, as many as a transposed convolution's stride puts there."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spaced = x.new_zeros(*x.shape[:2], *sizes)
    spaced[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return spaced
