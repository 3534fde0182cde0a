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
        memory: About how many bytes the pairs may take that are compared at once, > 0.

    Raises:
        DataError: A field is out of range.
        PlanError: When called: the pattern moves more than single weights.

    Source:
        The exact change of the error for a pair, from the Gram matrix: "SparseSwaps", arXiv, December 2025.
    """

    rounds: int = 25
    memory: int = 1 << 28

    def __post_init__(self) -> None:
        if min(self.rounds, self.memory) < 1:
            raise DataError(f"{self!r}: rounds and memory are at least 1")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`."""
        if not isinstance(problem.pattern, Unstructured | NofM):
            raise PlanError(f"swaps move single weights, and {problem.pattern} has none; leave Swaps() out")
        columns = problem.weight.shape[1]
        cell = problem.pattern.m if isinstance(problem.pattern, NofM) else columns
        cells = torch.arange(columns, device=problem.weight.device) // cell
        apart = cells[:, None] != cells[None] if cell < columns else None
        rows = max(1, self.memory // (3 * columns * columns * problem.weight.itemsize))
        stays = torch.cat(
            [
                self._swapped(weight, problem.gram, kept, apart)
                for weight, kept in zip(
                    torch.split(problem.weight, rows), torch.split(problem.stays, rows), strict=True
                )
            ]
        )
        return Solved(problem.rounded(problem.weight) * stays, stays)

    def _swapped(self, weight: Tensor, gram: Tensor, stays: Tensor, apart: Tensor | None) -> Tensor:
        """What stays of some rows, `[rows, in]`; pairs that are `apart` (`[in, in]`) may not be exchanged."""
        stays, rows = stays.clone(), torch.arange(len(weight), device=weight.device)
        own = weight.square() * gram.diagonal()
        missing = (weight * ~stays) @ gram
        for _ in range(self.rounds):
            leaving = (own + 2 * weight * missing).masked_fill(~stays, torch.inf)
            coming = (own - 2 * weight * missing).masked_fill(stays, torch.inf)
            pairs = leaving[:, :, None] + coming[:, None, :] - 2 * (weight[:, :, None] * weight[:, None, :]) * gram
            if apart is not None:
                pairs.masked_fill_(apart, torch.inf)
            gain, pair = pairs.flatten(1).min(1)
            out, back = pair // weight.shape[1], pair % weight.shape[1]
            chosen = rows[gain < -1e-12 * own.sum(1)]
            if not len(chosen):
                break
            out, back = out[chosen], back[chosen]
            stays[chosen, out], stays[chosen, back] = False, True
            missing[chosen] += weight[chosen, out][:, None] * gram[out] - weight[chosen, back][:, None] * gram[back]
        return stays
