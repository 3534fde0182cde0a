"""Scores from the gradient of the loss: what removing a unit does to it, to first order (Taylor, Fisher)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.axes import Scores
from secateur.errors import DataError, ModelError
from secateur.torch.attention import open_attention
from secateur.torch.batches import Batches, Loss, batch_size, loss_of, take
from secateur.torch.capture import Inputs, TracedNetwork
from secateur.torch.replicate import replicate
from secateur.torch.scores.score import prunable
from secateur.torch.scores.units import Totals, by_axis, sum_onto_units


@dataclass(frozen=True, slots=True)
class Taylor:
    """The change of the loss when a unit shrinks, to first order, with its sign dropped: `|E[sum w g]|`.

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
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> batches = [(torch.ones(8, 2), torch.zeros(8, dtype=torch.int64))]
        >>> Taylor()(trace(model, torch.ones(1, 2)), batches)["0"].shape
        (4,)

    Source:
        P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, equation 7;
        "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8, here over every weight of the unit.
    """

    samples: int = 512
    microbatch: int = 64
    loss: Loss | None = None

    def __post_init__(self) -> None:
        _check_counts(self, self.samples, self.microbatch)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        pieces = _weights_times_gradients(network, batches, self)
        sizes, sums = zip(*pieces, strict=True)
        return by_axis(network, np.abs(np.average(np.stack(sums), axis=0, weights=np.array(sizes))))


@dataclass(frozen=True, slots=True)
class Fisher:
    """The squared change of the loss when a unit shrinks, sample by sample, on average: `E[(sum w g)^2]`.

    Squaring before the mean keeps what cancels between samples in `Taylor`. It is the diagonal of the empirical Fisher matrix for
    a gate on each unit.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The samples in one backward pass, whose mean gradient is squared, > 0. 1 is exact; more is faster where a
            model is small, and noisier.
        loss: Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself.

    Raises:
        DataError: `samples` or `microbatch` is not positive. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: weights or gradients that are not finite; names the tensor.

    Example:
        >>> from secateur.torch import trace
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> batches = [(torch.ones(8, 2), torch.zeros(8, dtype=torch.int64))]
        >>> Fisher(samples=4)(trace(model, torch.ones(1, 2)), batches)["0"].shape
        (4,)

    Source:
        L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787, equation 8, with the
        signal at a unit replaced by the weights that make and read it; P. Molchanov et al., CVPR 2019, equation 7.
    """

    samples: int = 256
    microbatch: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        _check_counts(self, self.samples, self.microbatch)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        total, count = np.zeros(network.unit_count), 0
        for size, sums in _weights_times_gradients(network, batches, self):
            total, count = total + size * sums**2, count + size
        return by_axis(network, total / count)


def _check_counts(score: object, samples: int, microbatch: int) -> None:
    if samples < 1 or microbatch < 1:
        raise DataError(f"{score!r}: samples and microbatch are at least 1")


def _weights_times_gradients(
    network: TracedNetwork, batches: Batches | None, score: Taylor | Fisher
) -> Iterator[tuple[int, Totals]]:
    """For each piece of data its number of samples and, for each unit, the sum of weight times gradient of the mean loss."""
    if batches is None:
        raise DataError(
            f"{type(score).__name__} needs data: call score(network, batches) with batches of (inputs, targets)"
        )
    names = list(prunable(network))
    copy = _differentiable_copy(network.model, names)
    parameters = {name: parameter for name, parameter in copy.named_parameters() if name in names}
    for inputs, targets in take(batches, score.samples, score.microbatch, labelled=True):
        gradients = _gradients(copy, parameters, inputs, targets, score.loss)
        products = ((name, _times(name, parameters[name].detach(), gradient)) for name, gradient in gradients.items())
        yield batch_size(inputs), sum_onto_units(network, products)


def _differentiable_copy(model: nn.Module, names: list[str]) -> nn.Module:
    """A copy in eval mode that shares the weights, and wants gradients for the named ones alone, frozen or not."""
    copy = replicate(
        model, lambda tensor: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    )
    open_attention(copy)
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(name in names)
    return copy.eval()


def _gradients(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs, targets: object, loss: Loss | None
) -> dict[str, Tensor]:
    """The gradients of the loss; parameters that the loss does not see are left out."""
    # The fused recurrent kernels of CUDA refuse to go backwards in eval mode.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fused = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent)
    with torch.enable_grad(), fused, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        value = loss_of(model, inputs, targets, loss)
        if not torch.isfinite(value.detach()):
            raise DataError(f"the loss is {value.item()} on a batch; look for values in the data that are not finite")
        if not value.requires_grad:
            raise DataError(
                "the loss does not depend on the parameters; compute it from the model's output, without detach()"
            )
        found: tuple[Tensor | None, ...] = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _times(name: str, weight: Tensor, gradient: Tensor) -> Tensor:
    """Weight times gradient, entry by entry, in float32 at least."""
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    if not torch.isfinite(gradient).all():
        raise ModelError(
            f"the gradient of {name!r} is not finite in {gradient.dtype}; score the model in float32, or look for values in "
            "the data that are not finite"
        )
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.to(wide) * gradient.to(wide)
