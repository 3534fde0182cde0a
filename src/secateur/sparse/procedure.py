"""How one layer becomes sparse: scores choose by a pattern what goes, and solvers make up for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.errors import DataError, PlanError
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Pattern
from secateur.sparse.problem import Problem, Solved, Solver, keep, output_error
from secateur.sparse.rounding import Rounding
from secateur.torch import scores as criteria
from secateur.torch.batches import Batches
from secateur.torch.calibrate import Moments
from secateur.torch.state import state_of

Worth = criteria.WeightScore | Mapping[str, Tensor]
"""What gives the scores of a layer when it is its turn, or those of whole parameters, by name."""


@dataclass(frozen=True, slots=True)
class Procedure:
    """What is done with each layer.

    Attributes:
        pattern: What goes together.
        worth: What a weight is worth.
        solvers: What is done with the choice, one after the other.
        rounding: What the weights that stay are rounded to, or None.
    """

    pattern: Pattern
    worth: Worth
    solvers: Sequence[Solver]
    rounding: Rounding | None = None

    @property
    def needs_gram(self) -> bool:
        """Whether there is more to do than to choose."""
        return any(solver is not keep for solver in self.solvers)

    def __call__(
        self, layer: Layer, dense: Tensor, power: Tensor, gram: Tensor | None, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor, float | None]:
        """Make a layer sparse.

        Args:
            layer: Which.
            dense: Its weight, `[groups, out, in]`.
            power: E[x^2] of what it reads, `[groups, in]`.
            gram: E[x x^T], `[groups, in, in]`, or None: then no solver changes what a score has chosen.
            counts: How many units go of each group.

        Returns:
            The sparse weight, what stays of it, and the relative error where there is a Gram matrix.
        """
        scores = scored(self.worth, layer, dense, power)
        weights, masks, lost, whole = [], [], 0.0, 0.0
        for g, count in enumerate(counts):
            stays = self.pattern.choose(scores[g], count)
            if gram is None:
                weight = dense[g] * stays
                found = Solved(weight if self.rounding is None else self.rounding(weight)(weight, slice(None)), stays)
            else:
                problem = Problem(dense[g], gram[g], self.pattern, count, stays)
                found = self._solved(problem)
                if self.rounding is not None:  # what stays grows: the dense weight would give too narrow a grid
                    found = self._solved(replace(problem, grid=self.rounding(found.weight)))
                lost += float(output_error(found.weight, dense[g], gram[g]).sum())
                whole += float(output_error(torch.zeros_like(found.weight), dense[g], gram[g]).sum())
            weights.append(found.weight.masked_fill(~found.stays, 0))  # and no negative zeros
            masks.append(found.stays)
        error = None if gram is None else lost / whole if whole > 0 else 0.0
        return torch.stack(weights), torch.stack(masks), error

    def on_moments(self, layer: Layer, weight: Tensor, moments: Moments, counts: Sequence[int]) -> tuple[Tensor, float]:
        """The sparse matrices of a weight and their relative error, on moments that have a Gram matrix."""
        power, gram = ordered(layer, moments)
        sparse, _, error = self(layer, layer.matrices(weight).to(power.dtype), power, gram, counts)
        assert error is not None
        return sparse, error

    def _solved(self, problem: Problem) -> Solved:
        """What comes out of one solver after the other."""
        found = Solved(problem.weight, problem.stays)
        for solver in self.solvers:
            found = solver(replace(problem, stays=found.stays))
        return found


def scored(worth: Worth, layer: Layer, weights: Tensor, power: Tensor | None) -> Tensor:
    """The scores of a layer, `[groups, out, in]`; -inf for what is zero already.

    Where nothing is known of what it reads, E[x^2] is 1 for all inputs.
    """
    if isinstance(worth, Mapping):
        scores = layer.matrices(worth[layer.product.tensor])
    else:
        powers = weights.new_ones(len(weights), weights.shape[2]) if power is None else power
        scores = torch.stack([worth.of_weight(*each) for each in zip(weights, powers, strict=True)])
    return scores.masked_fill(weights == 0, -torch.inf)


def of_model(
    score: criteria.ModelScore, model: nn.Module, batches: Batches, layers: Sequence[Layer]
) -> Mapping[str, Tensor]:
    """The scores of all parameters, on the dense model.

    Raises:
        DataError: A score is missing, has another shape than its weight, or is not a number.
    """
    state, names = state_of(model), list(dict.fromkeys(layer.product.tensor for layer in layers))
    found = score.of_model(model, batches, names)
    for name in names:
        scores, shape = found.get(name), state[name].shape
        if scores is None or scores.shape != shape or bool(scores.isnan().any()):
            got = "none" if scores is None else f"a {list(scores.shape)} tensor with {int(scores.isnan().sum())} NaN"
            raise DataError(f"{score!r} gives a number for each weight of {name!r} {list(shape)}; got {got}")
    return found


def ordered(layer: Layer, moments: Moments) -> tuple[Tensor, Tensor | None]:
    """Moments in the order of a layer's columns, in the type that the Gram matrix has."""
    order = layer.order(moments.power.device)
    kind = torch.float32 if moments.gram is None else moments.gram.dtype
    gram = None if moments.gram is None else moments.gram[:, order][:, :, order]
    return moments.power[:, order].to(kind), gram


def check_choices(pattern: object, score: object, rounding: object = None) -> None:
    """Refuse what is no pattern, no score of weights, or no rounding.

    Raises:
        PlanError: One is not; says what it could be.
    """
    if isinstance(pattern, type) or not isinstance(pattern, Pattern):
        raise PlanError(f"pattern= is an object such as secateur.patterns.NofM(2, 4); got {pattern!r}")
    if rounding is not None:
        _check_object(rounding, "rounding= is an object such as secateur.sparse.rounding.Integer()")
    if isinstance(score, type) or not isinstance(score, criteria.WeightScore | criteria.ModelScore):
        raise PlanError(
            f"score= is an object that scores single weights, such as secateur.scores.Wanda(); got {score!r}"
        )


def listed(solver: Solver | Iterable[Solver]) -> list[Solver]:
    """One solver or several, as a list; none is `keep`.

    Raises:
        PlanError: One is no solver.
    """
    found = list(solver) if isinstance(solver, Iterable) else [solver]
    for one in found:
        _check_object(one, "solver= is an object such as secateur.solvers.SparseGPT(), or several")
    return found or [keep]


def _check_object(value: object, wanted: str) -> None:
    if isinstance(value, type) or not callable(value):
        raise PlanError(f"{wanted}; got {value!r}")
