"""Scores from the gradient of the loss: what removing a unit or a weight does to it, to first order (Taylor, Fisher)."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from secateur.axes import Scores
from secateur.torch.batches import Batches, Loss
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.backward import check_counts, gradient_moments
from secateur.torch.scores.effects import effects
from secateur.torch.scores.units import by_axis
from secateur.torch.scores.weights import weights_of


@dataclass(frozen=True, slots=True)
class Taylor:
    """The change of the loss when a unit shrinks, to first order: `|E[sum w g]|`, or signed `-E[sum w g]`.

    The sum runs over all the weights that go with the unit, the mean over the samples. Zeroing a unit where it is made and where
    it is read counts twice what zeroing it once does, so scores are about twice the change of the loss.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The most samples in one backward pass, which bounds the memory, > 0.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: weights or gradients that are not finite; names the tensor.

    Example:
        >>> import torch
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> batches = [(torch.ones(8, 2), torch.zeros(8, dtype=torch.int64))]
        >>> Taylor()(trace(model, torch.ones(1, 2)), batches)["0"].shape
        (4,)

    Source:
        P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, equation 7;
        "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8, here over every weight of the unit. For single
        weights N. Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
    """

    samples: int = 512
    microbatch: int = 64
    loss: Loss | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        check_counts(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        mean = effects(self, network, batches).mean
        return by_axis(network, -mean if self.signed else np.abs(mean))

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """`|w E[g]|` of single weights; see `ModelScore`. This is SNIP's, but for a factor that is the same for all weights."""
        mean = gradient_moments(self, model, batches, names).mean
        products = {name: weight * mean[name] for name, weight in weights_of(model, names).items()}
        return {name: -product if self.signed else product.abs() for name, product in products.items()}


@dataclass(frozen=True, slots=True)
class Fisher:
    """The squared change of the loss when a unit shrinks, sample by sample, on average: `E[(sum w g)^2]`.

    Squaring before the mean keeps what cancels between samples in `Taylor`. It is the diagonal of the empirical Fisher matrix for
    a gate on each unit, and so twice the saliency of Optimal Brain Damage for it.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The samples in one backward pass, whose mean gradient is squared, > 0. 1 is exact; more is faster where a
            model is small, and noisier.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: weights or gradients that are not finite; names the tensor.

    Example:
        >>> import torch
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> batches = [(torch.ones(8, 2), torch.zeros(8, dtype=torch.int64))]
        >>> Fisher(samples=4)(trace(model, torch.ones(1, 2)), batches)["0"].shape
        (4,)

    Source:
        L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787, equation 8, with the
        signal at a unit replaced by the weights that make and read it; P. Molchanov et al., CVPR 2019, equation 7. For single
        weights Y. LeCun et al., "Optimal Brain Damage", NeurIPS 1989.
    """

    samples: int = 256
    microbatch: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_counts(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        found = effects(self, network, batches)
        return by_axis(network, found.variance + found.mean**2)

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """`w^2 E[g^2]` of single weights, twice the saliency of OBD with the empirical Fisher matrix; see `ModelScore`."""
        moments = gradient_moments(self, model, batches, names)
        return {name: weight.square() * moments.power(name) for name, weight in weights_of(model, names).items()}
