"""Optimal brain surgery: one weight of a row after the other goes, and all that are left make up for it each time."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secateur.errors import DataError, PlanError
from secateur.sparse.counts import apportion
from secateur.sparse.patterns import NofM, Unstructured
from secateur.sparse.problem import Problem, Solved, damped_inverse_factor


@dataclass(frozen=True, slots=True)
class ExactOBS:
    """The weight goes that costs least, with the inverse of the Gram matrix brought up to date: for small layers.

    A row takes `in^2` numbers and as many steps as weights go: cubic in the inputs, for every output.

    Args:
        damping: Added to the diagonal of the Gram matrix, as a share of its mean, >= 0.
        memory: About how many bytes the inverses of the rows may take that are worked on at once, > 0.

    Raises:
        DataError: A field is out of range.
        PlanError: When called: the pattern moves more than single weights.

    Source:
        E. Frantar and D. Alistarh, "Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning",
        NeurIPS 2022, algorithm 1; B. Hassibi and D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon",
        NIPS 1992, equation 5.
    """

    damping: float = 0.0
    memory: int = 1 << 28

    def __post_init__(self) -> None:
        if not 0 <= self.damping < inf or self.memory < 1:
            raise DataError(f"{self!r}: damping is at least 0 and finite, memory at least 1")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`. Rows lose the same number each, whatever the scope."""
        if not isinstance(problem.pattern, Unstructured | NofM):
            raise PlanError(f"optimal brain surgery moves single weights, and {problem.pattern} has none")
        rows, columns = problem.weight.shape
        upper, damping = damped_inverse_factor(problem.gram, self.damping)
        inverse = upper.mT @ upper
        goes = (
            [columns // problem.pattern.m * (problem.pattern.m - problem.pattern.n)] * rows
            if isinstance(problem.pattern, NofM)
            else apportion(problem.count, [1] * rows, [columns] * rows)
        )
        cell = problem.pattern.m if isinstance(problem.pattern, NofM) else columns
        most = problem.pattern.m - problem.pattern.n if isinstance(problem.pattern, NofM) else columns
        step = max(1, self.memory // (3 * columns * columns * inverse.itemsize))
        weight, stays = problem.weight.clone(), torch.ones_like(problem.weight, dtype=torch.bool)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            counts = torch.tensor(goes[part], device=weight.device)
            weight[part], stays[part] = _surgery(weight[part], inverse, counts, cell, most)
        return Solved(problem.rounded(weight) * stays, stays, damping)


def _surgery(weight: Tensor, inverse: Tensor, counts: Tensor, cell: int, most: int) -> tuple[Tensor, Tensor]:
    """Some rows `[rows, in]`, each without so many weights, of each cell of columns at most so many."""
    weight, inverses = weight.clone(), inverse.expand(len(weight), -1, -1).clone()
    stays, rows = torch.ones_like(weight, dtype=torch.bool), torch.arange(len(weight), device=weight.device)
    for done in range(int(counts.max()) if len(counts) else 0):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        full = ((~stays).view(len(weight), -1, cell).sum(2) >= most).repeat_interleave(cell, 1)
        cost = (weight.square() / diagonal).masked_fill(~stays | full, torch.inf)
        gone = cost.argmin(1)
        busy = counts > done
        column = inverses[rows, :, gone]
        pivot = column[rows, gone][:, None]
        weight = torch.where(busy[:, None], weight - column * (weight[rows, gone][:, None] / pivot), weight)
        update = column[:, :, None] * (column / pivot)[:, None, :]
        inverses = torch.where(busy[:, None, None], inverses - update, inverses)
        stays[rows[busy], gone[busy]] = False
        weight = weight * stays
        inverses.diagonal(dim1=1, dim2=2).masked_fill_(~stays, 1.0)
    return weight, stays
