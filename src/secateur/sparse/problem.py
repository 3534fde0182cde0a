"""What a solver is given and gives back: one weight as a matrix, its inputs' Gram matrix, and how much of it goes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.sparse.patterns import Pattern

Grid = Callable[[Tensor, slice], Tensor]
"""Rounds weights `[out, some columns]` to the numbers that they can be stored as, zero among them, given which columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A layer `y = W x` some of whose weights go.

    Attributes:
        weight: W, `[out, in]` float32 or float64, dense.
        gram: E[x x^T], `[in, in]`, in the same type.
        pattern: What goes together.
        count: How many units of the pattern go.
        stays: What a score has chosen to stay, boolean `[out, in]`.
        grid: The numbers that weights that stay can be; None where they are stored as they are.
    """

    weight: Tensor
    gram: Tensor
    pattern: Pattern
    count: int
    stays: Tensor
    grid: Grid | None = None

    def rounded(self, weight: Tensor, columns: slice = slice(None)) -> Tensor:
        """The weights of some columns as they will be stored."""
        return weight if self.grid is None else self.grid(weight, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """What became of it.

    Attributes:
        weight: The sparse weight, `[out, in]`; zero wherever something went.
        stays: What stays, boolean `[out, in]`.
        damping: What had to be added to the Gram matrix, as a share of the mean of its diagonal.
    """

    weight: Tensor
    stays: Tensor
    damping: float = 0.0


class Solver(Protocol):
    """Chooses what goes, or new values for what stays, or both; pure."""

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem."""
        ...


def output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """E|(W - W') x|^2 for each output, `[out]`, undamped.

    Example:
        >>> output_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]), torch.eye(2)).tolist()
        [4.0]
    """
    change = dense - weight
    return ((change @ gram) * change).sum(1)


def keep(problem: Problem) -> Solved:
    """The solver that changes nothing: what a score has chosen to go is zero."""
    return Solved(problem.rounded(problem.weight) * problem.stays, problem.stays)


def damped_inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse of a damped Gram matrix, `[in, in]`, and the damping that it took.

    Args:
        gram: E[x x^T]; where the diagonal is zero, 1 is put there.
        damping: As a share of the mean of the diagonal; ten times as much, and again, where there is no factor.
    """
    gram = gram.clone()
    diagonal = gram.diagonal()
    diagonal[diagonal == 0] = 1
    eye, scale = torch.eye(len(gram), dtype=gram.dtype, device=gram.device), float(diagonal.mean())
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + damping * scale * eye)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and bool(torch.isfinite(upper).all()):
            return upper, damping
        damping = max(10 * damping, 1e-8)
        if not damping < 1e9:
            raise DataError(
                "a Gram matrix has no inverse, however much is added to it; look for values that are not finite"
            )
