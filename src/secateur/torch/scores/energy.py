"""What goes missing where a unit was read: its energy, or its fluctuation about the mean. Needs data, but no labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.axes import Scores
from secateur.torch.batches import Batches
from secateur.torch.calibrate import Calibrate
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.otherwise import UNSEEN, Found, completed, either, where_known
from secateur.torch.scores.score import Score, needed, prunable
from secateur.torch.scores.units import add_at, sum_onto_units

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Of numbers whose mean and mean square these are, `[groups, n]` float64."""


@dataclass(frozen=True, slots=True)
class Energy:
    """The squared error that removing a unit leaves in what reads it: the sum over its consumers of `|W[:, u]|^2 E[x_u^2]`.

    Consumers are linear layers and convolutions. For one unit it is their exact mean squared error before any refit, for several
    it adds up where their values are uncorrelated. Where none of them reads an axis (the width of q and k, which a product of
    activations reads), it is the energy `E[y_u^2]` of what linear layers and convolutions write there.

    Args:
        samples: How many samples to use, > 0.
        rows: The most tokens or windows of a batch that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.
        ModelError: When called: an axis without energy, and no `otherwise`; names the axes. Weights that are not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> _ = (
        ...     model[0].weight.data.copy_(torch.tensor([[3.0], [1.0]])),
        ...     model[1].weight.data.copy_(torch.tensor([[2.0, 1.0]])),
        ... )
        >>> Energy()(trace(model, torch.ones(1, 1)), [torch.ones(4, 1)])["0"].tolist()
        [36.0, 1.0]

    Source:
        M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), ICLR 2024, equation 1, summed
        over the column as in Y. An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), AAAI
        2024, section 3, with the second moment in place of the variance.
    """

    samples: int = 1024
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        _calibrate(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        found = _missing(self, network, batches, lambda _, power: power)
        return completed(self, network, batches, found, UNSEEN)


@dataclass(frozen=True, slots=True)
class Fluctuation:
    """As `Energy`, once the mean of what goes is folded into biases: the sum over consumers of `|W[:, u]|^2 Var[x_u]`.

    For one unit that is one input of a linear layer, it is the exact mean squared error that `compensation.FoldMean` leaves.
    A unit that is constant is worth nothing, however large. Where no linear layer or convolution reads an axis, it is the
    variance of what is written there.

    Args:
        samples: How many samples to use, > 0.
        rows: The most tokens or windows of a batch that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.
        ModelError: When called: an axis that is neither read nor written, and no `otherwise`; names the axes. Weights that are
            not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1, bias=False))
        >>> _ = (
        ...     model[0].weight.data.copy_(torch.tensor([[3.0], [0.0]])),
        ...     model[0].bias.data.fill_(5.0),
        ...     model[1].weight.data.copy_(torch.tensor([[2.0, 1.0]])),
        ... )
        >>> Fluctuation()(trace(model, torch.ones(1, 1)), [torch.tensor([[-1.0], [1.0]])])["0"].tolist()
        [36.0, 0.0]

    Source:
        Y. An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), AAAI 2024, section 3, with
        the variance over all rows together. To rank layers together by standard scores as there, give the allocation
        `normalise.standard`.
    """

    samples: int = 1024
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        _calibrate(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        # Rounding takes a variance of zero below it.
        found = _missing(self, network, batches, lambda mean, power: (power - mean.square()).clamp(min=0))
        return completed(self, network, batches, found, UNSEEN)


def _calibrate(score: Energy | Fluctuation) -> Calibrate:
    return Calibrate(samples=score.samples, rows=score.rows, gram=False)


def _missing(
    score: Energy | Fluctuation, network: TracedNetwork, batches: Batches | None, statistic: Statistic
) -> Found:
    """For each unit the sum of squared weights that read it times a statistic of what they read, or that of what is written."""
    batches = needed(score, batches)
    weights = prunable(network)
    read, readers, written, writers = (np.zeros(network.unit_count) for _ in range(4))
    for found in _calibrate(score)(network.model, batches, tensors=weights):
        product, weight = found.product, weights[found.product.tensor].to("cpu", torch.float64)
        matrix = product.matrix(weight)
        for totals, entries in (
            (readers, torch.ones_like(matrix)),
            (read, matrix.square() * statistic(found.mean, found.power)[:, None].cpu()),
        ):
            spread = torch.zeros_like(weight)
            product.put(entries, spread)
            totals += sum_onto_units(network, [(product.tensor, spread)], dim=product.in_dim)
        units = network.units(product.tensor)[product.out_dim]
        if units is not None:
            part = units[:, product.start : product.start + product.size]
            outputs = statistic(found.output_mean, found.output_power).flatten().cpu().numpy()
            add_at(writers, part, np.ones_like(outputs))
            add_at(written, part, outputs)
    return either(where_known(network, read, readers), where_known(network, written, writers))
