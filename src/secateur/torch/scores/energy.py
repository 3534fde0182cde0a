"""Consumer energy: how much of what is read comes from a unit. Needs data, but no labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from secateur.axes import Scores
from secateur.errors import DataError, ModelError
from secateur.torch.batches import Batches
from secateur.torch.calibrate import Calibrate, Moments
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.score import Score, prunable
from secateur.torch.scores.units import add_at, by_axis, sum_onto_units


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
        self._calibrate()

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        if batches is None:
            raise DataError("Energy needs data: call score(network, batches); labels are not needed")
        prunable(network)
        moments = self._calibrate()(network.model, batches)
        readers, energies = _read(network, moments)
        writers, outputs = _written(network, moments)
        blind = [axis.name for axis in network.axes if not (readers[axis.name].all() or writers[axis.name].all())]
        found = {name: energies[name] if readers[name].all() else outputs[name] for name in energies}
        if not blind:
            return found
        if self.otherwise is None:
            raise ModelError(
                f"no linear layer or convolution reads or writes the units of {', '.join(map(repr, blind))}, so they have no "
                "energy; give Energy(otherwise=...) a score for such axes, for example Magnitude()"
            )
        others = self.otherwise(network, batches)
        return {name: others[name] if name in blind else values for name, values in found.items()}

    def _calibrate(self) -> Calibrate:
        return Calibrate(samples=self.samples, rows=self.rows, gram=False)


def _read(network: TracedNetwork, moments: Sequence[Moments]) -> tuple[Scores, Scores]:
    """For each unit how many weights read it, and the mean squared error that they would be left with."""
    weights = dict(network.model.named_parameters())
    count, energy = np.zeros(network.unit_count), np.zeros(network.unit_count)
    for found in moments:
        product, weight = found.product, weights[found.product.tensor].detach().to("cpu", torch.float64)
        matrix = product.matrix(weight)
        for totals, entries in (
            (count, torch.ones_like(matrix)),
            (energy, matrix.square() * found.power[:, None].cpu()),
        ):
            spread = torch.zeros_like(weight)
            product.put(entries, spread)
            totals += sum_onto_units(network, [(product.tensor, spread)], dim=product.in_dim)
    return by_axis(network, count), by_axis(network, energy)


def _written(network: TracedNetwork, moments: Sequence[Moments]) -> tuple[Scores, Scores]:
    """For each unit how many outputs belong to it, and the energy of what is written there."""
    count, energy = np.zeros(network.unit_count), np.zeros(network.unit_count)
    for found in moments:
        product, output = found.product, found.output.flatten().cpu().numpy()
        units = network.units(product.tensor)[product.out_dim]
        if units is not None:
            part = units[:, product.start : product.start + product.size]
            add_at(count, part, np.ones_like(output))
            add_at(energy, part, output)
    return by_axis(network, count), by_axis(network, energy)
