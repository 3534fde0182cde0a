"""Weights as whole numbers of a few bits: the grid fits what solvers make of a weight, who then round to it as they go."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.sparse.problem import Grid

SHRINKS = tuple(1 - n / 50 for n in range(26))
"""What ranges are multiplied by in the search for the best: from 1 to a half."""


class Rounding(Protocol):
    """Says which numbers the weights of a layer can be; `str` of it says how many bits that takes."""

    def __call__(self, weight: Tensor) -> Grid:
        """The grid for a weight as solvers leave it without rounding, `[out, in]`."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """Whole numbers times a scale, one for each row and group of columns. Zero is always one of them.

    The weights keep their type, in which they are these numbers; nothing of them is packed. In a type of 16 bits they are the
    nearest that it has.

    Args:
        bits: Of a whole number, from 2 to 16.
        group: Columns that share a scale, at least 1; None for whole rows.
        symmetric: Whether the grid reaches as far below zero as above, and has as many numbers there. Otherwise it lies where the
            weights do, with a whole number for zero.
        clip: Whether the range of a grid is made narrower where that lowers the squared error of the weights, down to a half.
            Otherwise it reaches to the farthest weight.

    Raises:
        DataError: A field is out of range.

    Example:
        >>> grid = Integer(bits=2, group=2)(torch.tensor([[1.0, -0.2, 8.0, 4.1]]))
        >>> grid(torch.tensor([[0.6, -0.4, 9.0, -5.0]]), slice(None)).tolist()
        [[1.0, 0.0, 8.0, -8.0]]

    Source:
        Grids by row and group, and the search for their ranges: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for
        Generative Pre-trained Transformers", ICLR 2023, and its code. Rounding in the sweep that prunes: E. Frantar and
        D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023.
    """

    bits: int = 4
    group: int | None = 128
    symmetric: bool = True
    clip: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or (self.group is not None and self.group < 1):
            raise DataError(f"{self!r}: bits is at least 2 and at most 16, group at least 1 or None")

    def __str__(self) -> str:
        return f"{self.bits} bits" + ("" if self.group is None else f" in groups of {self.group}")

    def __call__(self, weight: Tensor) -> Grid:
        """The grid for a weight; see `Rounding`."""
        columns = weight.shape[1]
        group = columns if self.group is None else min(self.group, columns)
        parts = F.pad(weight, (0, -columns % group)).reshape(len(weight), -1, group)
        low, high = parts.amin(2, keepdim=True).clamp(max=0), parts.amax(2, keepdim=True).clamp(min=0)
        best, lost = torch.ones_like(low), torch.full_like(low, torch.inf)
        for shrink in SHRINKS if self.clip else ():
            error = (self._over(low * shrink, high * shrink).nearest(parts) - parts).square().sum(2, keepdim=True)
            best, lost = torch.where(error < lost, shrink, best), torch.minimum(error, lost)
        grid = self._over(low * best, high * best)
        scale, zero = (each.expand_as(parts).flatten(1)[:, :columns] for each in (grid.scale, grid.zero))
        return replace(grid, scale=scale, zero=zero)

    def _over(self, low: Tensor, high: Tensor) -> "WholeNumbers":
        """The grid over such ranges, each with zero in it."""
        if self.symmetric:
            most = 2 ** (self.bits - 1) - 1
            scale = _positive(torch.maximum(high, -low) / most)
            return WholeNumbers(scale, torch.zeros_like(scale), -most, most)
        most = 2**self.bits - 1
        scale = _positive((high - low) / most)
        return WholeNumbers(scale, (-low / scale).round(), 0, most)


@dataclass(frozen=True, slots=True, eq=False)
class WholeNumbers:
    """The numbers `(n - zero) * scale` for whole n in a range; rounds to the nearest.

    Attributes:
        scale: `[out, in]`, above zero.
        zero: The whole number that stands for zero, `[out, in]`.
        least: The lowest n.
        most: The highest n.
    """

    scale: Tensor
    zero: Tensor
    least: int
    most: int

    def __call__(self, weight: Tensor, columns: slice) -> Tensor:
        """The nearest number of the grid for each weight of some columns; see `Grid`."""
        return replace(self, scale=self.scale[:, columns], zero=self.zero[:, columns]).nearest(weight)

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest number for each weight."""
        whole = (weight / self.scale).round() + self.zero
        return (whole.clamp(self.least, self.most) - self.zero) * self.scale


def _positive(scale: Tensor) -> Tensor:
    """A scale, 1 where all weights are zero, or too small for a scale that is exact enough."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
