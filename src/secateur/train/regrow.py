"""Masks of a constant size whose weights change places: where the gradient is largest (`RigL`), or by chance (`SET`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

from secateur.errors import PlanError
from secateur.sparse.allocation import Allocation, erdos_renyi
from secateur.sparse.counts import share_of
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.torch.scores import Magnitude
from secateur.train.method import Weights, check_layers, chosen, lowest


@dataclass(frozen=True, slots=True)
class RigL:
    """Every so often, the weights of the lowest magnitude go, and as many grow where the loss falls most steeply.

    Each layer keeps as many as it has at first, when those of the lowest magnitude go: in a model that is sparse already, what is
    zero. The share that changes places falls from `fraction` to 0 on half a cosine. What grows begins at zero; a weight that goes
    and grows at once stays as it is. The step at which masks change is taken, other than in the paper; until the optimiser takes
    it, gradients are dense, and so counts their norm if it is cut.

    Args:
        sparsity: The share that is zero, in [0, 1).
        until: The step from which on masks stay, above 0; the paper stops after three quarters of the training.
        every: How many steps masks stay as they are, at least 1.
        fraction: The share of a layer's weights that change places at first, in (0, 1].
        pattern: What goes and grows together; layers are compared with each other at the beginning only.
        allocation: How what goes is divided among the layers.

    Raises:
        PlanError: A number is out of range, or the pattern has no freedom.
        BudgetError: The sparsity is out of range.

    Example:
        >>> method = RigL(0.9, until=300, every=100)
        >>> [step for step in range(1000) if method.changes(step)], round(method.fraction_at(150), 2)
        ([0, 100, 200], 0.15)

    Source:
        U. Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3 and algorithm 1.
    """

    sparsity: float | Fraction
    until: int
    every: int = 100
    fraction: float = 0.3
    pattern: Pattern = Unstructured("tensor")  # noqa: RUF009 - frozen
    allocation: Allocation = erdos_renyi

    def __post_init__(self) -> None:
        _check(self, self.sparsity, self.every, self.fraction, self.pattern)
        if self.until < 1:
            raise PlanError(f"{self!r}: until is at least 1")

    @property
    def needs_gradients(self) -> bool:
        """It grows by them."""
        return True

    def changes(self, step: int) -> bool:
        """Every so many steps, until the end."""
        return step % self.every == 0 and step < self.until

    def fraction_at(self, step: int) -> float:
        """The share of a layer's weights that change places after so many steps."""
        return self.fraction / 2 * (1 + cos(step * pi / self.until))

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
        """See `Method`. A layer without a gradient stays as it is."""
        if step == 0:
            return lowest(weights, self.sparsity, self.pattern, Magnitude(), self.allocation)
        return _exchanged(weights, self.pattern, self.fraction_at(step), weights.slopes)


@dataclass(frozen=True, slots=True)
class SET:
    """Every so often, the weights of the lowest magnitude go, and as many grow by chance.

    Each layer keeps as many as it has at first, when those of the lowest magnitude go. What grows begins at zero, and not, as in
    the paper, at random. The same seed gives the same places after the same step.

    Args:
        sparsity: The share that is zero, in [0, 1).
        every: How many steps masks stay as they are, at least 1; the paper changes them once an epoch.
        fraction: The share of a layer's weights that change places, in (0, 1].
        pattern: What goes and grows together; layers are compared with each other at the beginning only.
        allocation: How what goes is divided among the layers.
        seed: At least 0.

    Raises:
        PlanError: A number is out of range, or the pattern has no freedom.
        BudgetError: The sparsity is out of range.

    Example:
        >>> list(filter(SET(0.9, every=10).changes, range(25)))
        [0, 10, 20]

    Source:
        D. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", Nature
        Communications 2018.
    """

    sparsity: float | Fraction
    every: int
    fraction: float = 0.3
    pattern: Pattern = Unstructured("tensor")  # noqa: RUF009 - frozen
    allocation: Allocation = erdos_renyi
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, self.sparsity, self.every, self.fraction, self.pattern)
        if self.seed < 0:
            raise PlanError(f"{self!r}: seed is at least 0")

    @property
    def needs_gradients(self) -> bool:
        """It grows by chance."""
        return False

    def changes(self, step: int) -> bool:
        """Every so many steps."""
        return step % self.every == 0

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
        """See `Method`."""
        if step == 0:
            return lowest(weights, self.sparsity, self.pattern, Magnitude(), self.allocation)
        random = np.random.default_rng((self.seed, step))
        return _exchanged(
            weights, self.pattern, self.fraction, lambda layer: torch.from_numpy(random.random(layer.shape))
        )


def _exchanged(
    weights: Weights, pattern: Pattern, fraction: float, worth: Callable[[Layer], Tensor | None]
) -> dict[str, Tensor]:
    """What stays where, of each matrix, a share of the lowest goes, and as much grows of what is worth most there."""
    check_layers(weights, pattern)
    masks = {}
    for layer in weights.layers:
        if (growth := worth(layer)) is None:
            continue
        stays = weights.mask(layer)
        gone = [int((pattern.units((~mask).float()) > 0).sum()) for mask in stays]
        live = [pattern.units(mask.float()).numel() - count for mask, count in zip(stays, gone, strict=True)]
        fewer = [count + int(fraction * n + 0.5) for count, n in zip(gone, live, strict=True)]
        kept = chosen(pattern, weights.magnitudes(layer), fewer)
        masks[layer.product] = chosen(pattern, growth.to(kept.device).masked_fill(kept, torch.inf), gone)
    return weights.with_masks(masks)


def _check(method: object, sparsity: float | Fraction, every: int, fraction: float, pattern: Pattern) -> None:
    share_of(sparsity)
    if every < 1 or not 0 < fraction <= 1:
        raise PlanError(f"{method!r}: every is at least 1, and fraction above 0 and at most 1")
    if pattern.share is not None:
        raise PlanError(f"{pattern} says where weights stay, cell by cell; grow with another pattern")
