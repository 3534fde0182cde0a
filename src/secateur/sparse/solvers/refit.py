"""New values for the weights that stay: least squares on a mask that is given."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.sparse.problem import Problem, Solved, keep, output_error


@dataclass(frozen=True, slots=True)
class Refit:
    """The weights that stay do the work of those that go: exact least squares for each output, by conjugate gradients.

    Args:
        ridge: How strongly weights are held to what they were, as a share of the mean of the Gram matrix' diagonal, >= 0.
        tolerance: When a row is solved: the residual, relative to what it was, in (0, 1).
        steps: The most steps of conjugate gradients, > 0.

    Raises:
        DataError: A field is out of range.

    Source:
        The normal equations on the support: E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 3;
        by conjugate gradients: X. Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
        Models", NeurIPS 2024, section 3.3.
    """

    ridge: float = 1e-2
    tolerance: float = 1e-3
    steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < inf or not 0 < self.tolerance < 1 or self.steps < 1:
            raise DataError(f"{self!r}: ridge is at least 0, tolerance between 0 and 1, steps at least 1")

    def __call__(self, problem: Problem) -> Solved:
        """Solve one problem; see `Solver`."""
        masked = problem.weight * problem.stays
        damping = self.ridge * float(problem.gram.diagonal().mean())
        change = solve_on(problem.stays, (problem.weight - masked) @ problem.gram, problem.gram, damping, self)
        fitted = problem.rounded(masked + change) * problem.stays
        before = keep(problem).weight
        errors = [output_error(weight, problem.weight, problem.gram) for weight in (fitted, before)]
        better = errors[0] <= errors[1]
        return Solved(torch.where(better[:, None], fitted, before), problem.stays, self.ridge)


def solve_on(stays: Tensor, wanted: Tensor, gram: Tensor, damping: float, settings: Refit) -> Tensor:
    """For each row the x, zero where `stays` is false, with `(gram + damping) x = wanted` where it is true.

    Args:
        stays: `[rows, n]`, boolean.
        wanted: `[rows, n]`.
        gram: `[n, n]`, positive semi-definite.
        damping: Added to its diagonal, >= 0.
        settings: When to stop.
    """
    scale = gram.diagonal() + damping
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    solved, rows = torch.zeros_like(wanted), torch.arange(len(wanted), device=wanted.device)
    x, residual = torch.zeros_like(wanted), wanted * stays
    step = residual / scale
    power = (residual * step).sum(1)
    enough = power * settings.tolerance**2
    for _ in range(settings.steps):
        open_ = power > enough
        if not bool(open_.any()):
            break
        if 2 * int(open_.sum()) < len(open_):  # only rows that are not solved yet are worth the work
            solved[rows] = x
            rows, stays, x, residual = rows[open_], stays[open_], x[open_], residual[open_]
            step, power, enough = step[open_], power[open_], enough[open_]
            open_ = open_[open_]
        ahead = (step @ gram + damping * step) * stays
        curvature = (step * ahead).sum(1)
        moving = open_ & (curvature > 0)
        length = torch.where(moving, power / curvature, torch.zeros_like(power))[:, None]
        x = x + length * step
        residual = residual - length * ahead
        scaled = residual / scale
        before, power = power, torch.where(moving, (residual * scaled).sum(1), torch.zeros_like(power))
        step = scaled + torch.where(before > 0, power / before, torch.zeros_like(power))[:, None] * step
    solved[rows] = x
    return solved
