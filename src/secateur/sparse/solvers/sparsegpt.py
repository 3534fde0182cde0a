"""SparseGPT: column by column, what goes is made up for by all columns to the right of it."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.sparse.counts import apportion
from secateur.sparse.problem import Problem, Solved, damped_inverse_factor


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
        weight = problem.weight.clone()
        weight[:, problem.gram.diagonal() == 0] = 0
        stays = torch.ones_like(weight, dtype=torch.bool)
        for start, stop, count in self._parts(problem, weight):
            columns, errors = slice(start, stop), torch.zeros_like(weight[:, start:stop])
            part, factor = weight[:, columns].clone(), upper[columns, columns]
            for i in range(stop - start):
                if problem.pattern.share is not None and i % problem.pattern.width == 0:
                    cell = slice(i, i + problem.pattern.width)
                    stays[:, columns][:, cell] = _chosen(problem, part[:, cell], factor.diagonal()[cell], 0)
                elif problem.pattern.share is None and i == 0:
                    stays[:, columns] = _chosen(problem, part, factor.diagonal(), count)
                new = problem.rounded(part[:, i : i + 1], slice(start + i, start + i + 1))[:, 0] * stays[:, start + i]
                errors[:, i] = (part[:, i] - new) / factor[i, i]
                part[:, i:] -= errors[:, i : i + 1] * factor[i, i:]
                part[:, i] = new
            weight[:, columns] = part
            weight[:, stop:] -= errors @ upper[columns, stop:]
        return Solved(weight, stays, damping)

    def _parts(self, problem: Problem, weight: Tensor) -> list[tuple[int, int, int]]:
        """Runs of columns, and how many units go of each: first what is zero already, and of the rest an equal share."""
        pattern, columns = problem.pattern, weight.shape[1]
        step = max(1, self.block // pattern.width) * pattern.width
        bounds = [(start, min(start + step, columns)) for start in range(0, columns, step)]
        if pattern.share is not None:
            return [(start, stop, 0) for start, stop in bounds]
        units = [pattern.units(weight[:, start:stop].abs()) for start, stop in bounds]
        zeros, sizes = [int((part == 0).sum()) for part in units], [part.numel() for part in units]
        gone = apportion(min(problem.count, sum(zeros)), zeros, zeros)
        live = [size - zero for size, zero in zip(sizes, zeros, strict=True)]
        more = apportion(problem.count - sum(gone), live, live)
        return [(*bound, a + b) for bound, a, b in zip(bounds, gone, more, strict=True)]


def _chosen(problem: Problem, part: Tensor, diagonal: Tensor, count: int) -> Tensor:
    """What stays of some columns: by the error that each weight leaves behind."""
    return problem.pattern.choose((part / diagonal).square(), count)
