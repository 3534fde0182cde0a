"""Which weights can go together: each by itself, so many of every few, or whole blocks.

A pattern sees a weight as a matrix `[rows, columns]`, a row for each output and a column for each input; of a convolution, the
columns of one tap of the kernel lie side by side. It chooses by scores, higher = keep; what scores the same goes in the order in
which it lies. All numbers are exact.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import PlanError


@runtime_checkable
class Pattern(Protocol):
    """What goes together, and how it is chosen."""

    @property
    def width(self) -> int:
        """Columns that are decided together: a part of a matrix to choose in has a multiple of them, but for its last."""
        ...

    @property
    def share(self) -> float | None:
        """The only sparsity that it can have; None where any is possible."""
        ...

    def check(self, columns: int) -> None:
        """Refuse a matrix of so many columns that it does not fit.

        Raises:
            PlanError: It does not; says why.
        """
        ...

    def units(self, entries: Tensor) -> Tensor:
        """The sum of the entries `[rows, columns]` of each unit, that is, of what goes together: `[rows of units, units]`."""
        ...

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """Let the `count` units with the lowest scores go.

        Args:
            scores: `[rows, columns]`; -inf for what is zero already, which has nothing left to lose.
            count: How many units go.

        Returns:
            What stays, boolean `[rows, columns]`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Every weight by itself.

    Args:
        scope: Among which weights the lowest scores are looked for: those of a "row", so that each output keeps as many inputs;
            of the "tensor"; or of all tensors together ("global"), which then lose different shares.

    Raises:
        PlanError: The scope is none of these.

    Example:
        >>> Unstructured().choose(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 2).tolist()
        [[True, False], [False, True]]
        >>> Unstructured("tensor").choose(torch.tensor([[3.0, 4.0], [2.0, 1.0]]), 2).tolist()
        [[True, True], [False, False]]
    """

    scope: Literal["row", "tensor", "global"] = "row"

    def __post_init__(self) -> None:
        if self.scope not in ("row", "tensor", "global"):
            raise PlanError(f"Unstructured(scope={self.scope!r}): the scope is 'row', 'tensor' or 'global'")

    @property
    def width(self) -> int:
        """One column."""
        return 1

    @property
    def share(self) -> None:
        """Any sparsity is possible."""
        return

    def check(self, columns: int) -> None:
        """It fits every matrix."""

    def units(self, entries: Tensor) -> Tensor:
        """The entries themselves."""
        return entries

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """See `Pattern`. By row, each loses as many as the next, or one more."""
        if self.scope != "row":
            return _all_but_lowest(scores.reshape(1, -1), count).view(scores.shape)
        each, more = divmod(count, len(scores))
        return torch.cat([_all_but_lowest(scores[:more], each + 1), _all_but_lowest(scores[more:], each)])


@dataclass(frozen=True, slots=True)
class NofM:
    """At most `n` weights in every `m` neighbours of a row stay: 2 of 4 is what some GPUs multiply faster.

    Args:
        n: How many stay, at least 1.
        m: Of how many, above `n`.

    Raises:
        PlanError: The numbers are not so.

    Example:
        >>> NofM(1, 2).choose(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), 2).tolist()
        [[True, False, False, True]]

    Source:
        A. Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, section 3.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise PlanError(f"NofM({self.n}, {self.m}): at least 1 stays, and fewer than all, such as NofM(2, 4)")

    @property
    def width(self) -> int:
        """As many columns as a cell has."""
        return self.m

    @property
    def share(self) -> float:
        """What goes of every cell."""
        return (self.m - self.n) / self.m

    def check(self, columns: int) -> None:
        """The rows must be made of whole cells."""
        if columns % self.m:
            raise PlanError(f"{columns} inputs are no multiple of {self.m}; exclude it, or choose another pattern")

    def units(self, entries: Tensor) -> Tensor:
        """The entries themselves."""
        return entries

    def choose(self, scores: Tensor, count: int) -> Tensor:  # noqa: ARG002 - as Pattern asks
        """See `Pattern`; the count follows from the pattern."""
        cells = scores.reshape(-1, self.m)
        return _all_but_lowest(cells, self.m - self.n).view(scores.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """Rectangles of weights go as a whole. Where they do not fit evenly, those at the lower and right edge are smaller.

    Args:
        rows: Outputs of a block, at least 1.
        columns: Inputs of a block, at least 1.

    Raises:
        PlanError: The numbers are not so.

    Example:
        >>> Block(1, 2).choose(torch.tensor([[3.0, 1.0, 2.0, 1.0]]), 1).tolist()
        [[True, True, False, False]]
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise PlanError(f"Block({self.rows}, {self.columns}): a block has at least one row and one column")

    @property
    def width(self) -> int:
        """As many columns as a block has."""
        return self.columns

    @property
    def share(self) -> None:
        """Any sparsity is possible."""
        return

    def check(self, columns: int) -> None:
        """It fits every matrix."""

    def units(self, entries: Tensor) -> Tensor:
        """The sums over blocks."""
        rows, columns = entries.shape
        padded = F.pad(entries, (0, -columns % self.columns, 0, -rows % self.rows))
        grid = padded.view(padded.shape[0] // self.rows, self.rows, padded.shape[1] // self.columns, self.columns)
        return grid.sum((1, 3))

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """See `Pattern`."""
        blocks = self.units(scores.masked_fill(scores == -torch.inf, 0))
        stays = _all_but_lowest(blocks.reshape(1, -1), count).view(blocks.shape)
        whole = stays.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return whole[: scores.shape[0], : scores.shape[1]]


def _all_but_lowest(scores: Tensor, count: int) -> Tensor:
    """For each row `[rows, columns]`, all but so many of its lowest scores; of equal ones the first go."""
    if not count or not len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    last = _smallest(scores, count)
    stays = ~(scores <= last)
    more = scores.shape[1] - count - stays.sum(1, keepdim=True)
    if bool(more.any()):
        equal = scores == last
        stays |= equal & (equal.cumsum(1) > equal.sum(1, keepdim=True) - more)
    return stays


def _smallest(scores: Tensor, count: int) -> Tensor:
    """The score of each row that is the largest of its `count` lowest, `[rows, 1]`."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):  # some times as fast
        parted = np.partition(scores.detach().numpy(), count - 1, axis=1)
        return torch.from_numpy(parted[:, count - 1 : count])
    return scores.kthvalue(count, dim=1, keepdim=True).values
