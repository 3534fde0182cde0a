"""What a single weight is worth, layer by layer or over a whole model: one number for each, higher = keep."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.errors import DataError, ModelError
from secateur.torch.batches import Batches


@runtime_checkable
class WeightScore(Protocol):
    """Says what each weight of a layer is worth."""

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layer reads."""
        ...

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:
        """Score the weights of one layer.

        Args:
            weight: `[out, in]`, float32 or float64.
            power: E[x^2] of what each input reads, `[in]`, for scores that need data; else None.

        Returns:
            `[out, in]`; higher = keep.
        """
        ...


@runtime_checkable
class ModelScore(Protocol):
    """Says what each weight of a model is worth, from one look at the whole of it."""

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> Mapping[str, Tensor]:
        """Score the weights of some parameters.

        Args:
            model: Whose weights they are; it is not changed.
            batches: Data, for the scores that need it; see `secateur.torch.batches`.
            names: The parameters that count.

        Returns:
            For each name a tensor of the parameter's shape; higher = keep.
        """
        ...


@dataclass(frozen=True, slots=True)
class Wanda:
    """Magnitude times the norm of the input: `|w| * sqrt(E[x^2])`, the root of the error that the weight leaves behind alone.

    Example:
        >>> Wanda().of_weight(torch.tensor([[1.0, -2.0]]), torch.tensor([16.0, 1.0])).tolist()
        [[4.0, 2.0]]

    Source:
        M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, equation 1.
    """

    @property
    def needs_data(self) -> bool:
        """It looks at what the layer reads."""
        return True

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:
        """Score the weights of one layer; see `WeightScore`."""
        return weight.abs() * norms(self, power)


@dataclass(frozen=True, slots=True)
class RIA:
    """A weight's share of its row and of its column, times a power of the norm of its input.

    Args:
        power: Of the norm of the input, at least 0 and finite.

    Raises:
        DataError: The power is out of range.

    Example:
        >>> RIA(power=0).of_weight(torch.tensor([[1.0, 3.0]]), torch.ones(2)).tolist()
        [[1.25, 1.75]]

    Source:
        Y. Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024:
        relative importance and activations.
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.power < inf:
            raise DataError(f"{self!r}: the power is at least 0 and finite; 0.5 is usual")

    @property
    def needs_data(self) -> bool:
        """It looks at what the layer reads."""
        return True

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:
        """Score the weights of one layer; see `WeightScore`."""
        size = weight.abs()
        rows, columns = size.sum(1, keepdim=True), size.sum(0, keepdim=True)
        share = size / torch.where(rows > 0, rows, 1.0) + size / torch.where(columns > 0, columns, 1.0)
        return share * norms(self, power) ** self.power


@dataclass(frozen=True, slots=True)
class LAMP:
    """A weight's square, relative to all in its tensor that are not smaller: what a global comparison of tensors can use.

    The largest weight of each tensor scores 1, so that no tensor is emptied while another has weights to give.

    Example:
        >>> LAMP().of_weight(torch.tensor([[1.0, -1.0, 2.0]]), None).tolist()
        [[0.1666666716337204, 0.20000000298023224, 1.0]]

    Source:
        J. Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, equation 1.
    """

    @property
    def needs_data(self) -> bool:
        """It looks at the weights alone."""
        return False

    def of_weight(self, weight: Tensor, power: Tensor | None) -> Tensor:  # noqa: ARG002 - as WeightScore asks
        """Score the weights of one layer; see `WeightScore`."""
        squares = weight.square().flatten()
        order = squares.argsort(stable=True)
        above = squares[order].flip(0).cumsum(0).flip(0)
        scores = torch.empty_like(squares)
        scores[order] = squares[order] / torch.where(above > 0, above, 1.0)
        return scores.view(weight.shape)


def weights_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """The named parameters, in float32 at least, without gradients.

    Raises:
        ModelError: The model has no parameter of such a name.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        if name not in parameters:
            raise ModelError(
                f"{type(model).__name__} has no parameter {name!r}; it has {', '.join(list(parameters)[:5])}..."
            )
    return {
        name: parameters[name].detach().to(torch.promote_types(parameters[name].dtype, torch.float32)) for name in names
    }


def norms(score: object, power: Tensor | None) -> Tensor:
    """The root mean square of what each input reads, `[in]`.

    Raises:
        DataError: There are no data.
    """
    if power is None:
        raise DataError(f"{type(score).__name__} needs data: give batches of what the model reads")
    return power.clamp(min=0).sqrt()
