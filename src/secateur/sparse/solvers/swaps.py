"""A better choice of what stays: one weight of a row for another, as long as that lowers the error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError, PlanError
from secateur.sparse.patterns import NofM, Unstructured
from secateur.sparse.problem import Problem, Solved


@dataclass(frozen=True, slots=True)
class Swaps:
    """In every row the best exchange of a weight that stays for one that goes, again and again. Values do not change.

    Args:
        rounds: The most exchanges in a row, > 0.
        candidates: Pairs are made of so many weights that would cost least to lose, and as many that would bring most, each by
            itself, > 0. Where there are no more in a row, or in a cell of the pattern, all pairs are compared.
        memory: About how many bytes the pairs may take that are compared at once, > 0.

    Raises:
        DataError: A field is out of range.
        PlanError: When called: the pattern moves more than single weights.

    Source:
        The exact change of the error for a pair, from the Gram matrix: "SparseSwaps", arXiv, December 2025, where all pairs are
        compared.
    """

    rounds: int = 25
    candidates: int = 32
    memory: int = 1 << 28

    def __post_init__(self) -> None:
        if min(self.rounds, self.candidates, self.memory) < 1:
            raise DataError(f"{self!r}: rounds, candidates and memory are at least 1")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`."""
        if not isinstance(problem.pattern, Unstructured | NofM):
            raise PlanError(f"swaps move single weights, and {problem.pattern} has none; leave Swaps() out")
        columns = problem.weight.shape[1]
        cell = problem.pattern.m if isinstance(problem.pattern, NofM) else columns
        pairs = columns // cell * min(self.candidates, cell) ** 2
        rows = max(1, self.memory // (3 * (pairs + columns) * problem.weight.itemsize))
        parts = zip(torch.split(problem.weight, rows), torch.split(problem.stays, rows), strict=True)
        stays = torch.cat([self._swapped(weight, problem.gram, kept, cell) for weight, kept in parts])
        return Solved(problem.rounded(problem.weight) * stays, stays)

    def _swapped(self, weight: Tensor, gram: Tensor, stays: Tensor, cell: int) -> Tensor:
        """What stays of some rows, `[rows, in]`; a weight is exchanged for one of the same `cell` columns."""
        stays, rows = stays.clone(), torch.arange(len(weight), device=weight.device)
        missing = (weight * ~stays) @ gram
        own = weight.square() * gram.diagonal()
        least = 1e-12 * own.sum(1)
        for _ in range(self.rounds):
            w, kept, alone, cross = weight[rows], stays[rows], own[rows], 2 * weight[rows] * missing[rows]
            lost, out = self._least((alone + cross).masked_fill(~kept, torch.inf), cell)
            gone, back = self._least((alone - cross).masked_fill(kept, torch.inf), cell)
            products = _at(w, out)[..., :, None] * _at(w, back)[..., None, :]
            pairs = lost[..., :, None] + gone[..., None, :] - 2 * products * gram[out[..., :, None], back[..., None, :]]
            change, pair = pairs.flatten(1).min(1)
            open_ = change < -least[rows]
            rows, pair = rows[open_], pair[open_]
            if not len(rows):
                break
            width = out.shape[-1]
            out, back = out[open_].flatten(1), back[open_].flatten(1)
            cells = pair // width**2 * width
            leaving = out.gather(1, (cells + pair // width % width)[:, None])[:, 0]
            coming = back.gather(1, (cells + pair % width)[:, None])[:, 0]
            stays[rows, leaving], stays[rows, coming] = False, True
            missing[rows] += weight[rows, leaving][:, None] * gram[leaving]
            missing[rows] -= weight[rows, coming][:, None] * gram[coming]
        return stays

    def _least(self, costs: Tensor, cell: int) -> tuple[Tensor, Tensor]:
        """The least costs of each cell, and their columns: `[rows, cells, candidates]`."""
        cells = costs.view(len(costs), -1, cell)
        found, places = cells.topk(min(self.candidates, cell), largest=False, sorted=False)
        return found, places + cell * torch.arange(cells.shape[1], device=costs.device)[:, None]


def _at(weight: Tensor, columns: Tensor) -> Tensor:
    """The weights in some columns of each row: `[rows, in]`, `[rows, cells, candidates]`."""
    return weight.gather(1, columns.flatten(1)).view_as(columns)
