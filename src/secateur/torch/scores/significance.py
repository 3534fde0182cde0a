"""Scores from the gradients of many samples: their mean, how it stands out of their noise, and what is certain of them."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.axes import Scores
from secateur.errors import DataError
from secateur.torch.batches import Batches, Loss
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.backward import check_counts, gradient_moments
from secateur.torch.scores.effects import effects
from secateur.torch.scores.score import prunable
from secateur.torch.scores.units import by_axis, sum_onto_units
from secateur.torch.scores.weights import weights_of


@dataclass(frozen=True, slots=True)
class Gradient:
    """The size of the mean gradient: `|E[g]|`, how fast the loss changes with the weight, whatever that is now.

    Of a unit it is the Euclidean norm over all the weights that go with it: how fast the loss changes in the direction in which
    these weights change it most.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The most samples in one backward pass, which bounds the memory, > 0.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: weights of units or gradients that are not finite; names the parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> score = Gradient(loss=lambda output, targets: output.mean())
        >>> score.of_model(model, [torch.tensor([[1.0, -4.0], [3.0, 0.0]])], ["weight"])["weight"].tolist()
        [[2.0, 2.0]]
    """

    samples: int = 512
    microbatch: int = 64
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_counts(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        means = gradient_moments(self, network.model, batches, prunable(network)).mean
        squares = ((name, mean.to(torch.float64).square()) for name, mean in means.items())
        return by_axis(network, np.sqrt(sum_onto_units(network, squares)))

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        return {name: mean.abs() for name, mean in gradient_moments(self, model, batches, names).mean.items()}


@dataclass(frozen=True, slots=True)
class SignalToNoise:
    """The mean gradient over its standard deviation among samples: `|E[g]| / sqrt(Var[g])`, of a unit that of `s = sum w g`.

    High where the samples agree which way a weight should go, or a unit should grow. It has no unit of measure, so that layers
    compare. What does not vary scores infinity, or zero where it is zero.

    Args:
        samples: How many samples to use, > 1.
        microbatch: The samples in one backward pass, whose mean gradient counts once, > 0; 1 is exact.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, data that do not fit the model or the loss, or
            gradients none of which varies.
        ModelError: When called: weights of units or gradients that are not finite; names the parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> score = SignalToNoise(loss=lambda output, targets: output.mean())
        >>> score.of_model(model, [torch.tensor([[1.0, -4.0], [3.0, 0.0]])], ["weight"])["weight"].tolist()
        [[2.0, 1.0]]

    Source:
        The root of the ratio of J. Liu et al., "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters",
        ICLR 2020; for units our own.
    """

    samples: int = 256
    microbatch: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_counts(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        return by_axis(network, effects(self, network, batches).signal_to_noise(self))

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        moments = gradient_moments(self, model, batches, names)
        if not any(bool(variance.any()) for variance in moments.variance.values()):
            raise DataError(
                f"no gradient varies among {moments.count} samples in passes of {self.microbatch}, so there is no noise to "
                f"compare with; give {type(self).__name__} several different samples, and a smaller microbatch"
            )
        return {
            name: torch.where(mean == 0, 0, mean.abs() / moments.variance[name].sqrt())
            for name, mean in moments.mean.items()
        }


@dataclass(frozen=True, slots=True)
class Wald:
    """A weight over its standard error: `|w| sqrt(n E[g^2])`, the z-value of Wald's test that it is zero.

    The standard error is that of a maximum of the likelihood, from the diagonal of the empirical Fisher matrix: the loss must be
    minus the logarithm of a probability, as cross-entropy is, and the model trained to its minimum. What weights have in common
    is left out, so that z-values are rather too large. They order weights as `Fisher` does, whose root they are but for n, on a
    scale that says how certain a weight is: `allocation.Insignificant` lets those go that may be zero.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The samples in one backward pass, whose mean gradient is squared, > 0; 1 is exact.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.
        trained_on: n, how many samples the weights were fitted to, > 0; None = as many as are used here.

    Raises:
        DataError: A number is not positive. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: gradients that are not finite; names the parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(0.5)
        >>> score = Wald(loss=lambda output, targets: output.mean(), trained_on=100)
        >>> score.of_model(model, [torch.tensor([[2.0], [-2.0]])], ["weight"])["weight"].tolist()
        [[10.0]]

    Source:
        A. Wald, "Tests of Statistical Hypotheses Concerning Several Parameters When the Number of Observations is Large",
        Transactions of the American Mathematical Society 1943, for each weight by itself.
    """

    samples: int = 256
    microbatch: int = 1
    loss: Loss | None = None
    trained_on: int | None = None

    def __post_init__(self) -> None:
        check_counts(self)
        if self.trained_on is not None and self.trained_on < 1:
            raise DataError(f"{self!r}: trained_on is at least 1")

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        moments = gradient_moments(self, model, batches, names)
        n = self.trained_on or moments.count
        return {
            name: weight.abs() * (n * moments.power(name)).sqrt() for name, weight in weights_of(model, names).items()
        }


@dataclass(frozen=True, slots=True)
class TTest:
    """The t-value of a unit's effect: `|E[s]| / (sd[s] / sqrt(n))`, s = `sum w g` over all the weights that go with it.

    It tests whether the loss changes at all, on average over all data, when the unit shrinks. Samples on which the model was
    trained to a minimum say that it does not, whatever the unit: take others. It orders units as `SignalToNoise` does, on a scale
    that says how certain that is. From a hundred samples on, t-values can be read as z-values: `allocate.Insignificant` lets
    those units go whose effect may be zero. Effects that do not vary score infinity, or zero where they are zero.

    Args:
        samples: How many samples to use, > 1.
        microbatch: The samples in one backward pass, whose mean gradient counts once, > 0; 1 is exact.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, data that do not fit the model or the loss, or
            effects none of which varies.
        ModelError: When called: weights or gradients that are not finite; names the tensor.

    Example:
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = (model[0].weight.data.fill_(1.0), model[1].weight.data.copy_(torch.tensor([[1.0, -2.0]])))
        >>> score = TTest(loss=lambda output, targets: output.mean())
        >>> score(trace(model, torch.ones(1, 1)), [torch.tensor([[0.0], [1.0], [2.0]])])["0"].round(3).tolist()
        [1.732, 1.732]

    Source:
        Student, "The Probable Error of a Mean", Biometrika 1908.
    """

    samples: int = 256
    microbatch: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_counts(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        found = effects(self, network, batches)
        return by_axis(network, found.signal_to_noise(self) * np.sqrt(found.passes - 1))
