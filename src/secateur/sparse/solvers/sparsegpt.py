"""SparseGPT: column by column, what goes is made up for by all columns to the right of it."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.sparse.counts import apportion
from secateur.sparse.problem import Problem, Solved, damped_inverse_factor

STRIP = 16
"""Columns whose errors are spread one by one; beyond them, by products of matrices."""


@dataclass(frozen=True, slots=True)
class SparseGPT:
    """One sweep over the columns of a weight; each error is spread over the columns that are still to come.

    What goes is chosen for `block` columns at a time by `w^2 / d^2` (d: what is known of the column from those to the right of
    it), or cell by cell where the pattern says how many go of each. Scores of other kinds are not looked at.

    Args:
        block: Columns that are chosen from at a time, > 0.
        damping: Added to the diagonal of the Gram matrix, as a share of its mean, >= 0.

    Raises:
        DataError: A field is out of range.

    Source:
        E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
        algorithm 1.
    """

    block: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.block < 1 or not 0 <= self.damping < inf:
            raise DataError(f"{self!r}: block is at least 1, damping at least 0 and finite")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`."""
        upper, damping = damped_inverse_factor(problem.gram, self.damping)
        columns = problem.weight.T.contiguous()  # a row for each, so that a step goes through memory as it lies
        columns[problem.gram.diagonal() == 0] = 0
        stays = torch.ones_like(columns, dtype=torch.bool)
        for start, stop, count in self._parts(problem, columns.T):
            errors = torch.empty_like(columns[start:stop])
            if problem.pattern.share is None:
                stays[start:stop] = _chosen(problem, columns[start:stop], upper.diagonal()[start:stop], count)
            for first in range(start, stop, _step(problem, STRIP)):
                strip = slice(first, min(first + _step(problem, STRIP), stop))
                done = slice(first - start, strip.stop - start)
                self._sweep(problem, columns, stays, upper, strip, errors[done])
                columns[strip.stop : stop] -= upper[strip, strip.stop : stop].T @ errors[done]
            columns[stop:] -= upper[start:stop, stop:].T @ errors
        return Solved(columns.T.contiguous(), stays.T.contiguous(), damping)

    @staticmethod
    def _sweep(problem: Problem, columns: Tensor, stays: Tensor, upper: Tensor, strip: slice, errors: Tensor) -> None:
        """Settle a strip of columns, one after the other; each error is spread over those of the strip that come later."""
        cell = problem.pattern.width
        for number, i in enumerate(range(strip.start, strip.stop)):
            if problem.pattern.share is not None and number % cell == 0:
                stays[i : i + cell] = _chosen(problem, columns[i : i + cell], upper.diagonal()[i : i + cell], 0)
            new = problem.rounded(columns[i, :, None], slice(i, i + 1))[:, 0] * stays[i]
            errors[number] = (columns[i] - new) / upper[i, i]
            columns[i] = new
            columns[i + 1 : strip.stop].addr_(upper[i, i + 1 : strip.stop], errors[number], alpha=-1)

    def _parts(self, problem: Problem, weight: Tensor) -> list[tuple[int, int, int]]:
        """Runs of columns, and how many units go of each: first what is zero already, and of the rest an equal share."""
        pattern, columns, step = problem.pattern, weight.shape[1], _step(problem, self.block)
        bounds = [(start, min(start + step, columns)) for start in range(0, columns, step)]
        if pattern.share is not None:
            return [(start, stop, 0) for start, stop in bounds]
        units = [pattern.units(weight[:, start:stop].abs()) for start, stop in bounds]
        zeros, sizes = [int((part == 0).sum()) for part in units], [part.numel() for part in units]
        gone = apportion(min(problem.count, sum(zeros)), zeros, zeros)
        live = [size - zero for size, zero in zip(sizes, zeros, strict=True)]
        more = apportion(problem.count - sum(gone), live, live)
        return [(*bound, a + b) for bound, a, b in zip(bounds, gone, more, strict=True)]


def _step(problem: Problem, columns: int) -> int:
    """So many columns, or fewer, but whole cells of the pattern."""
    return max(1, columns // problem.pattern.width) * problem.pattern.width


def _chosen(problem: Problem, columns: Tensor, diagonal: Tensor, count: int) -> Tensor:
    """What stays of some columns `[columns, out]`: by the error that each weight leaves behind."""
    return problem.pattern.choose((columns / diagonal[:, None]).square().T, count).T
