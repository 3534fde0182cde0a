"""The scale of a batch norm as a score."""

from dataclasses import dataclass

import torch
from torch import nn

from secateur.axes import Scores
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.otherwise import completed, where_known
from secateur.torch.scores.score import Score, prunable
from secateur.torch.scores.units import sum_onto_units


@dataclass(frozen=True, slots=True)
class BatchNormScale:
    """The size of the scale that the batch norms of an axis give a unit: the mean `|gamma|`.

    Needs no data. Made for networks trained with an L1 penalty on these scales.

    Args:
        otherwise: Scores the axes that have no batch norm; None = such axes are an error.

    Raises:
        ModelError: When called: an axis without batch norm, and no `otherwise`; names the axes. Weights that are not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3))
        >>> _ = model[1].weight.data.copy_(torch.tensor([0.5, -2.0]))
        >>> BatchNormScale()(trace(model, torch.zeros(1, 1, 5, 5)))["0"].tolist()
        [0.5, 2.0]

    Source:
        Z. Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    """

    otherwise: Score | None = None

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        scales = _scales(network)
        counts = sum_onto_units(network, ((name, torch.ones(network.tensors[name].shape)) for name in scales))
        totals = sum_onto_units(
            network, ((name, weight.abs()) for name, weight in prunable(network).items() if name in scales)
        )
        found = where_known(network, totals / counts.clip(min=1), counts)
        return completed(self, network, batches, found, "no batch norm scales the units of")


def _scales(network: TracedNetwork) -> set[str]:
    """The names of the batch norms' weights."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    scales = {id(module.weight) for module in network.model.modules() if isinstance(module, kinds)}
    return {name for name, parameter in network.model.named_parameters() if id(parameter) in scales}
