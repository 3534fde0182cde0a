"""What a score is, and the two that need neither data nor gradients: magnitude and chance."""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from secateur.axes import Scores
from secateur.errors import DataError, ModelError
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.units import by_axis, sum_onto_units
from secateur.torch.scores.weights import weights_of


class Score(Protocol):
    """Says what each unit of each axis is worth."""

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units.

        Args:
            network: Whose units they are; its model is not changed.
            batches: Data, for the scores that need it; see `secateur.torch.batches`.

        Returns:
            For each axis' name one float64 number a unit, `[axis.size]`; higher = keep.
        """
        ...


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The norm of all the weights that go with a unit, in every slot: `(sum |w|^p)^(1/p)`.

    Needs no data. Measured on real networks it is a weak criterion before a refit, often no better than chance.

    Args:
        p: Which norm, > 0 and finite: 1 sums absolute values, 2 is Euclidean.

    Raises:
        ModelError: `p` is not positive and finite. When called: weights that are not finite; names the tensor.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> _ = (
        ...     model[0].weight.data.copy_(torch.tensor([[3.0], [0.0]])),
        ...     model[1].weight.data.copy_(torch.tensor([[4.0, 1.0]])),
        ... )
        >>> Magnitude()(trace(model, torch.zeros(1, 1)))["0"].tolist()
        [5.0, 1.0]

    Source:
        H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1, for the filters alone (p = 1);
        G. Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, equation 4, over coupled parameters (p = 2).
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.p < inf:
            raise ModelError(f"Magnitude(p={self.p}): the order of a norm is positive and finite; 1 and 2 are usual")

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:  # noqa: ARG002 - as Score asks
        """Score the units; see `Score`."""
        powers = ((name, weight.to(torch.float64).abs() ** self.p) for name, weight in prunable(network).items())
        return by_axis(network, sum_onto_units(network, powers) ** (1 / self.p))

    @property
    def needs_data(self) -> bool:
        """It looks at the weights alone."""
        return False

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:  # noqa: ARG002 - as WeightScore asks
        """`|w|^p` of single weights, which add up in blocks; see `WeightScore`."""
        return weight.abs() ** self.p

    def of_model(
        self,
        model: nn.Module,
        batches: Batches | None,  # noqa: ARG002 - as ModelScore asks
        names: Collection[str],
    ) -> dict[str, Tensor]:
        """The same, for whole parameters; see `ModelScore`."""
        return {name: self.of_weight(weight, None) for name, weight in weights_of(model, names).items()}


@dataclass(frozen=True, slots=True)
class Random:
    """A random order of the units: the control that every criterion has to beat.

    Args:
        seed: The same seed gives the same scores; >= 0.

    Raises:
        DataError: `seed` is negative.

    Example:
        >>> from secateur.torch import trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Linear(5, 1)), torch.zeros(1, 1))
        >>> bool((Random(seed=1)(network)["0"] == Random(seed=1)(network)["0"]).all())
        True
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"{self!r}: seed is at least 0")

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:  # noqa: ARG002 - as Score asks
        """Score the units; see `Score`."""
        generator = np.random.default_rng(self.seed)
        return {axis.name: generator.random(axis.size) for axis in network.axes}

    @property
    def needs_data(self) -> bool:
        """It looks at nothing."""
        return False

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:  # noqa: ARG002 - as WeightScore asks
        """Chance, for single weights; see `WeightScore`."""
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(self.seed), dtype=weight.dtype)


def needed(score: object, batches: Batches | None) -> Batches:
    """The data that a score needs, without labels.

    Raises:
        DataError: There are none.
    """
    if batches is None:
        raise DataError(f"{type(score).__name__} needs data: call score(network, batches); labels are not needed")
    return batches


def prunable(network: TracedNetwork) -> dict[str, Tensor]:
    """The model's parameters in which units live, by name, checked to be finite.

    Raises:
        ModelError: One is not, or has no values; names it.
    """
    found = {}
    for name, parameter in network.model.named_parameters():
        if not parameter.is_floating_point() or all(units is None for units in network.units(name)):
            continue
        if parameter.is_meta:
            raise ModelError(
                f"{name!r} is on the meta device and has no values; materialise the model before scoring it"
            )
        wrong = int((~torch.isfinite(parameter.detach())).sum())
        if wrong:
            raise ModelError(
                f"{name!r} holds {wrong} values that are NaN or infinite; load finite weights before scoring"
            )
        found[name] = parameter.detach()
    return found
