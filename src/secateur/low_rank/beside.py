"""Factors of low rank with a sparse weight beside them: `Sparse`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from secateur.errors import DataError, PlanError
from secateur.low_rank.spectrum import spectrum
from secateur.sparse.allocation import even
from secateur.sparse.amounts import check_fit, counts_of
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.sparse.problem import Solver, output_error
from secateur.sparse.procedure import Procedure, check_choices, listed
from secateur.sparse.solvers import Refit
from secateur.torch.products import Product
from secateur.torch.scores import Wanda, WeightScore


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse weight beside the factors: `W = S + up @ down`, each made in turn as good as it can be with the other as it is.

    Args:
        sparsity: The share of S that is zero, in [0, 1); None where the pattern says it.
        pattern: What goes together.
        score: What a weight of `W - up @ down` is worth.
        solver: What is done with the choice, one after the other.
        rounds: How often both are made anew, > 0.

    Raises:
        DataError: There are no rounds.
        PlanError: The pattern compares all tensors, or is none; no score of weights alone, or no solver.

    Source:
        T. Zhou and D. Tao, "GoDec: Randomized Low-rank & Sparse Matrix Decomposition in Noisy Case", ICML 2011, with the distance
        in what the layer writes; for language models: S. Zhang and V. Papyan, "OATS: Outlier-Aware Pruning Through Sparse and Low
        Rank Decomposition", ICLR 2025.
    """

    sparsity: float | Fraction | None = None
    pattern: Pattern = Unstructured()  # noqa: RUF009 - frozen
    score: WeightScore = Wanda()  # noqa: RUF009 - frozen
    solver: Solver | Sequence[Solver] = Refit()  # noqa: RUF009 - frozen
    rounds: int = 4

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 1:
            raise DataError(f"{self!r}: rounds is a whole number, at least 1")
        check_choices(self.pattern, self.score)
        listed(self.solver)
        if not isinstance(self.score, WeightScore):
            raise PlanError(
                f"beside factors a score of the weights alone is asked, such as scores.Wanda(); got {self.score!r}"
            )
        if self.pattern == Unstructured("global"):
            raise PlanError("beside factors each weight becomes sparse by itself: choose the scope 'row' or 'tensor'")

    def counts(self, layers: Iterable[Layer]) -> dict[Product, list[int]]:
        """How many units go of each layer, in its one group.

        Raises:
            BudgetError: The sparsity is missing, out of range, or not the pattern's.
            PlanError: The pattern does not fit a weight.
        """
        layers = list(layers)
        check_fit(layers, self.pattern)
        return counts_of(layers, self.pattern, self.sparsity, even, dict)

    def __call__(
        self, layer: Layer, weight: Tensor, gram: Tensor, count: list[int], rank: int, damping: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take a weight apart.

        Args:
            layer: Whose weight it is.
            weight: W, `[out, in]`.
            gram: E[x x^T], `[in, in]`.
            count: How many units of S go.
            rank: The width between the factors.
            damping: See `spectrum`.

        Returns:
            S and what stays of it, `[out, in]`; `down`, `[rank, in]`; `up`, `[out, rank]`.
        """
        procedure = Procedure(self.pattern, self.score, listed(self.solver))
        power, low = gram.diagonal()[None], torch.zeros_like(weight)
        best, least = None, torch.inf
        for _ in range(self.rounds):
            sparse, stays = (each[0] for each in procedure(layer, (weight - low)[None], power, gram[None], count)[:2])
            down, up = spectrum(weight - sparse, gram, damping).factors(rank)
            low = up @ down
            error = float(output_error(sparse + low, weight, gram).sum())
            if error < least:
                best, least = (sparse, stays, down, up), error
        if best is None:
            raise DataError(f"{layer.name!r} reads values that are too large to be squared; look at the data")
        return best
