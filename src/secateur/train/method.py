"""What masks do while a model is trained: the protocol, what a method looks at, and the method that leaves them alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from secateur.errors import BudgetError, ModelError, PlanError
from secateur.sparse import WeightPlan
from secateur.sparse.allocation import Allocation, even
from secateur.sparse.amounts import check_fit, counts_of
from secateur.sparse.counts import share_of
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Pattern
from secateur.torch.products import Product
from secateur.torch.scores import WeightScore


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a method looks at when masks change.

    Attributes:
        layers: The products whose weights can become sparse.
        values: The weights as they are now, by the names of the parameters.
        stays: What stays of each now, boolean, of its shape.
        gradients: The dense gradients of the step that was just taken, for methods that need them; of those that have one.
    """

    layers: Sequence[Layer]
    values: Mapping[str, Tensor]
    stays: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]

    def magnitudes(self, layer: Layer) -> Tensor:
        """`|w|` of a layer, `[groups, out, in]`, and less than any number for what went."""
        return self.scores(layer, torch.abs)

    def scores(self, layer: Layer, score: Callable[[Tensor], Tensor]) -> Tensor:
        """A score of each matrix `[out, in]` of a layer, `[groups, out, in]`, and less than any number for what went."""
        weights = _wide(layer, self.values)
        return torch.stack([score(weight) for weight in weights]).masked_fill(~self.mask(layer), -torch.inf)

    def slopes(self, layer: Layer) -> Tensor | None:
        """`|g|` of a layer, `[groups, out, in]`; None where it has no gradient."""
        return _wide(layer, self.gradients).abs() if layer.product.tensor in self.gradients else None

    def mask(self, layer: Layer) -> Tensor:
        """What stays of a layer now, `[groups, out, in]`."""
        return layer.matrices(self.stays[layer.product.tensor])

    def with_masks(self, masks: Mapping[Product, Tensor]) -> dict[str, Tensor]:
        """What stays of each parameter, where layers have new masks `[groups, out, in]`; the others keep theirs."""
        stays = {name: mask.clone() for name, mask in self.stays.items()}
        for layer in self.layers:
            if layer.product in masks:
                layer.put(masks[layer.product], stays[layer.product.tensor])
        return stays


@runtime_checkable
class Method(Protocol):
    """Says which weights stay while a model is trained. A step is an update of the weights; step 0 is before the first."""

    @property
    def needs_gradients(self) -> bool:
        """Whether it looks at dense gradients."""
        ...

    def changes(self, step: int) -> bool:
        """Whether masks change after so many steps."""
        ...

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
        """Say what stays from now on.

        Args:
            step: How many steps were taken.
            weights: What to choose among.

        Returns:
            For the name of each sparse parameter, what stays of it: boolean, of its shape.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """The same weights stay all the time.

    Args:
        plan: Which.
    """

    plan: WeightPlan

    @property
    def needs_gradients(self) -> bool:
        """It looks at nothing."""
        return False

    def changes(self, step: int) -> bool:
        """Masks are put on before the first step, and stay."""
        return step == 0

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:  # noqa: ARG002 - as Method asks
        """See `Method`."""
        return self.plan.stays


def lowest(
    weights: Weights, sparsity: float | Fraction, pattern: Pattern, score: WeightScore, allocation: Allocation
) -> dict[str, Tensor]:
    """What stays where the units with the lowest scores go; what went already goes first.

    Args:
        weights: What to choose among.
        sparsity: The share that goes, in [0, 1).
        pattern: What goes together.
        score: What a weight is worth.
        allocation: How what goes is divided among the layers.

    Raises:
        PlanError: There are no layers, or the pattern does not fit one.
        ModelError: Weights are not finite; names them.
    """
    check_layers(weights, pattern)
    found = cache(lambda layer: weights.scores(layer, lambda weight: score.of_weight(weight, None)))
    by_product = cache(lambda: {layer.product: found(layer) for layer in weights.layers})
    counts = counts_of(weights.layers, pattern, sparsity, allocation, by_product)
    return weights.with_masks(
        {layer.product: chosen(pattern, found(layer), counts[layer.product]) for layer in weights.layers}
    )


def chosen(pattern: Pattern, scores: Tensor, counts: Sequence[int]) -> Tensor:
    """What stays of matrices `[groups, rows, columns]` where so many units of each go."""
    return torch.stack([pattern.choose(each, count) for each, count in zip(scores, counts, strict=True)])


def check_choice(sparsity: float | Fraction, pattern: Pattern, score: WeightScore, allocation: Allocation) -> None:
    """Refuse a choice that cannot be made while a model trains.

    Raises:
        BudgetError: The sparsity is out of range, or not the pattern's.
        PlanError: The score needs data.
    """
    share = share_of(sparsity)
    if score.needs_data:
        raise PlanError(f"{score!r} needs data; while a model trains, use a score of the weights alone")
    if pattern.share is not None and (share != pattern.share or allocation is not even):
        raise BudgetError(f"{pattern} has a sparsity of {pattern.share:g} in each layer; give that, and no allocation")


def check_layers(weights: Weights, pattern: Pattern) -> None:
    """Refuse a model whose layers nobody looked for, and those that a pattern does not fit.

    Raises:
        PlanError: There are none, or a pattern does not fit one.
    """
    if not weights.layers:
        raise PlanError(
            "weights are found by a run of the model: pass example inputs, as in masked(model, method, inputs)"
        )
    check_fit(weights.layers, pattern)


def _wide(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The matrices of a layer in float32 at least.

    Raises:
        ModelError: They are not finite.
    """
    matrices = layer.matrices(tensors[layer.product.tensor])
    if not bool(torch.isfinite(matrices).all()):
        raise ModelError(
            f"{layer.name!r} has weights or gradients that are not finite, so that none can be chosen; "
            "look at the loss, and lower the learning rate"
        )
    return matrices.to(torch.promote_types(matrices.dtype, torch.float32))
