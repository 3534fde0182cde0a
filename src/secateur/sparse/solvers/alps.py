"""ALPS: which weights stay and what they become, together, by alternating directions."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.sparse.problem import Problem, Solved, output_error
from secateur.sparse.solvers.refit import Refit, solve_on


@dataclass(frozen=True, slots=True)
class ALPS:
    """Dense weights that fit the outputs and sparse ones that obey the pattern are pulled together, ever more strongly.

    Inputs are scaled to one norm first. What stays is refitted at the end. It starts from what a score has chosen, and where it
    ends worse than a refit of that, gives the refit. Costs an eigendecomposition and two products of the weight's size a round.

    Args:
        damping: Added to the diagonal of the Gram matrix, as a share of its mean, >= 0.
        rounds: The most rounds, > 0.
        penalty: How strongly the two are pulled together at first, > 0.

    Raises:
        DataError: A field is out of range.

    Source:
        X. Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", NeurIPS 2024:
        the alternating directions, and their schedule of penalties.
    """

    damping: float = 0.01
    rounds: int = 300
    penalty: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.damping < inf or self.rounds < 1 or not 0 < self.penalty < inf:
            raise DataError(f"{self!r}: damping is at least 0, rounds at least 1, penalty above 0")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`."""
        start = Refit(ridge=self.damping, tolerance=1e-2)(problem)
        norms = problem.gram.diagonal().clamp(min=0).sqrt()
        scale = torch.where(norms > 0, norms, torch.ones_like(norms))
        gram, dense = problem.gram / scale[:, None] / scale, problem.weight * scale
        gram = gram + self.damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        stays = self._chosen(problem, gram, dense, start.weight * scale, start.stays)
        chosen = dense * stays
        change = solve_on(stays, (dense - chosen) @ gram, gram, 0.0, Refit())
        weight = problem.rounded((chosen + change) / scale) * stays
        errors = [float(output_error(w, problem.weight, problem.gram).sum()) for w in (weight, start.weight)]
        return Solved(weight, stays, self.damping) if errors[0] <= errors[1] else start

    def _chosen(self, problem: Problem, gram: Tensor, dense: Tensor, sparse: Tensor, stays: Tensor) -> Tensor:
        """What stays, boolean `[out, in]`."""
        powers, axes = torch.linalg.eigh(gram)
        target, dual, penalty = dense @ gram, torch.zeros_like(dense), self.penalty
        size = max(int(stays.sum()), 1)
        for number in range(1, self.rounds + 1):
            fitted = ((target - dual + penalty * sparse) @ axes / (powers.clamp(min=0) + penalty)) @ axes.mT
            goal = fitted + dual / penalty
            before, stays = stays, problem.pattern.choose(goal.square(), problem.count)
            sparse = goal * stays
            dual = dual + penalty * (fitted - sparse)
            if number % 3 == 0:
                moved = int((before != stays).sum()) / size
                if moved == 0 and number > 3:
                    break
                penalty *= 1.3 if moved >= 0.1 else 1.2 if moved >= 0.005 else 1.1
        return stays
