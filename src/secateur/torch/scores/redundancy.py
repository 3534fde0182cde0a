"""Which units can others stand in for? Distances between their weights, and what each adds to the activations of all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.axes import Integers, Scores
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.activations import READ, WRITTEN, check_activations, watch_units
from secateur.torch.scores.otherwise import UNSEEN, Found, completed, either
from secateur.torch.scores.score import Score, prunable
from secateur.torch.scores.units import positions


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The sum of a unit's distances to all units of its axis: `sum_j |w_u - w_j|`, w all the weights that go with a unit.

    Low near the geometric median, where the others can stand in for a unit, and not where weights are small. Needs no data. An
    entry that lives in two dims of a square counts in each. Takes memory for some matrices of `units x units`.

    Args:
        otherwise: Scores the axes whose units have no weights to be compared one by one, such as the modules of a list; None =
            such axes are an error.

    Raises:
        ModelError: When called: such an axis, and no `otherwise`; names the axes. Weights that are not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
        >>> _ = (model[0].weight.data.copy_(torch.tensor([[0.0], [3.0], [3.0]])), model[1].weight.data.fill_(1.0))
        >>> GeometricMedian()(trace(model, torch.zeros(1, 1)))["0"].tolist()
        [6.0, 3.0, 3.0]

    Source:
        Y. He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (FPGM), CVPR 2019,
        section 3, over every weight of the unit where it has the filters alone.
    """

    otherwise: Score | None = None

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        weights = prunable(network)
        distances = {axis.name: _distances(network, weights, network.unit_range(axis.name)) for axis in network.axes}
        found = {name: None if each is None else each.sum(1).cpu().numpy() for name, each in distances.items()}
        return completed(self, network, batches, found, "no weights compare the units of")


@dataclass(frozen=True, slots=True)
class ChannelIndependence:
    """What a unit adds to the nuclear norm of all activations of its axis: `|A|_* - |A without row u|_*`.

    The rows of A are what linear layers and convolutions read of each unit, at all tokens or pixels of all samples. Low where a
    unit is small, or a combination of others. Where no such layer reads an axis, what they write there is taken. For each unit
    the singular values of a whole axis are computed, so time grows with the fourth power of its size: for axes of up to some
    hundred units.

    Args:
        samples: How many samples to use, > 0.
        rows: The most tokens or pixels of a batch that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.
        ModelError: When called: an axis that is neither read nor written, and no `otherwise`; names the axes. Weights that are
            not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> ChannelIndependence()(trace(model, torch.ones(1, 2)), [torch.eye(2)])["0"].tolist()
        [3.0, 1.0]

    Source:
        Y. Sui et al., "CHIP: CHannel Independence-based Pruning for Compact Neural Networks", NeurIPS 2021, section 3, over all
        samples at once where it has the mean over single images, so that units have independence that are no images.
    """

    samples: int = 256
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        check_activations(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        spans = {axis.name: network.unit_range(axis.name) for axis in network.axes}
        grams: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}

        def look(place: int, units: Integers, activations: Tensor) -> None:
            for name, span in spans.items():
                columns = positions(units, span)
                if columns is not None:
                    rows = activations[:, columns].transpose(0, 1).flatten(1)
                    grams[place][name] = grams[place].get(name, 0) + rows @ rows.T

        for _ in watch_units(self, network, batches, look):
            pass
        read, written = (_independence(spans, grams[place]) for place in (READ, WRITTEN))
        return completed(self, network, batches, either(read, written), UNSEEN)


def _distances(network: TracedNetwork, weights: dict[str, Tensor], span: slice) -> Tensor | None:
    """The distances between the units of an axis, `[units, units]` float64; None where some weights belong to a few of them."""
    squares: Tensor | None = None
    for name, weight in weights.items():
        for dim, units in enumerate(network.units(name)):
            if units is None or not ((units >= span.start) & (units < span.stop)).any():
                continue
            places = positions(units, span)
            if places is None:
                return None
            vectors = weight.movedim(dim, 0)[places].flatten(1).to(torch.float64)
            more = torch.cdist(vectors, vectors).square()
            squares = more if squares is None else squares + more
    return None if squares is None else squares.sqrt()


def _independence(spans: dict[str, slice], grams: dict[str, Tensor]) -> Found:
    """What each unit adds to the nuclear norm of the rows that have these products with each other."""
    return {name: _added(grams[name]).cpu().numpy() if name in grams else None for name in spans}


def _added(gram: Tensor) -> Tensor:
    units = torch.arange(len(gram), device=gram.device)
    without = [_nuclear_norm(gram[units != unit][:, units != unit]) for unit in units]
    return _nuclear_norm(gram) - torch.stack(without)


def _nuclear_norm(gram: Tensor) -> Tensor:
    """The sum of the singular values of rows that have these products with each other."""
    singular: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return singular.sum()
