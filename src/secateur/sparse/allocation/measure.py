"""How the weights that go are divided among layers by what was measured with each of them sparse alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import torch
from torch import nn

from secateur.errors import DataError
from secateur.sparse.allocation.divide import Share
from secateur.sparse.counts import apportion, count_of
from secateur.sparse.knapsack import cheapest

LEVELS = tuple(Fraction(n, 20) for n in range(20))
"""From 0 to 0.95, in steps of a twentieth."""


def equally(layer: Share) -> float:  # noqa: ARG001 - as the weights of layers are asked for
    """All layers count the same."""
    return 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Every layer is made sparse at every level, and the levels are chosen whose errors add up to least.

    What counts is the error of a layer's output relative to the size of that output, since scales of outputs mean nothing where a
    norm follows. Other measures are other weights: `weight=lambda layer: layer.units` counts a large layer more than a small one.
    That errors add up is an assumption; `Sensitivity` measures the whole model, but takes one run of it for each level of each
    layer. The levels let go a little more than was asked for, and all layers get their part of that back: the fewer the layers,
    the finer the levels should be.

    Costs a solution of each layer for each level, and as many runs of the data as the Gram matrices take to fit in memory.

    Args:
        levels: The sparsities that are tried, each in [0, 1).
        weight: How much the error of a layer counts.

    Raises:
        DataError: There are no levels. When called: errors or weights are not finite.
        BudgetError: When called: a level is out of range, or the highest of all are not enough.

    Source:
        The choice as a knapsack: E. Frantar and D. Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", ICML 2022.
    """

    levels: tuple[float | Fraction, ...] = LEVELS
    weight: Callable[[Share], float] = equally

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def __call__(self, layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        """Divide what goes; see `Allocation`."""
        return _divided(layers, sparsity, self.levels, lambda layer, n: self.weight(layer) * layer.alone(n).error)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The whole model is measured with one layer sparse, every layer at every level, and the levels are chosen that cost least.

    Args:
        evaluate: Measures a model in eval mode, without gradients: a loss, or a divergence from the dense model; lower is better.
        levels: The sparsities that are tried, each in [0, 1).

    Raises:
        DataError: There are no levels. When called: a measurement is not finite.
        BudgetError: When called: a level is out of range, or the highest of all are not enough.

    Example:
        >>> import secateur as sc
        >>> model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
        >>> far = Sensitivity(lambda changed: float((changed(x) - model(x)).square().mean()))
        >>> sc.sparsify(model, [x], sparsity=0.5, allocation=far).plan.zeros
        96
    """

    evaluate: Callable[[nn.Module], float]
    levels: tuple[float | Fraction, ...] = LEVELS

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def __call__(self, layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        """Divide what goes; see `Allocation`."""

        def loss(layer: Share, count: int) -> float:
            with torch.no_grad():
                return float(self.evaluate(layer.alone(count).model()))

        return _divided(layers, sparsity, self.levels, loss)


def _check_levels(levels: Sequence[float | Fraction]) -> None:
    if not levels:
        raise DataError("levels= has no sparsity to try; give some, such as (0.0, 0.25, 0.5, 0.75)")


def _divided(
    layers: Sequence[Share],
    sparsity: float | Fraction,
    levels: Sequence[float | Fraction],
    cost: Callable[[Share, int], float],
) -> list[int]:
    """The cheapest level of each layer, all of them scaled so that exactly as much goes as was asked for."""
    total = count_of(sparsity, sum(layer.units for layer in layers))
    counts = [[count_of(level, layer.units) for level in levels] for layer in layers]
    costs = [[cost(layer, n) for n in each] for layer, each in zip(layers, counts, strict=True)]
    for layer, each in zip(layers, costs, strict=True):
        if not all(map(isfinite, each)):
            raise DataError(f"{layer.name!r} costs {each} at the levels {levels}; costs must be finite numbers")
    chosen = [each[i] for each, i in zip(counts, cheapest(costs, counts, total), strict=True)]
    return apportion(total, chosen, [layer.units for layer in layers])
