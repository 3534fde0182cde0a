"""The gradients of a loss, piece by piece of the data, and their mean and variance."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.errors import DataError, ModelError
from secateur.torch.attention import open_attention
from secateur.torch.batches import Batches, Loss, batch_size, loss_of, take
from secateur.torch.capture import Inputs
from secateur.torch.inference import refuse_inference_mode
from secateur.torch.replicate import replicate
from secateur.torch.scores.weights import weights_of


class Backward(Protocol):
    """A score that goes backward through a model."""

    @property
    def samples(self) -> int:
        """How many samples it uses."""
        ...

    @property
    def microbatch(self) -> int:
        """The most samples in one backward pass."""
        ...

    @property
    def loss(self) -> Loss | None:
        """Takes the model's output and the targets; None = cross-entropy, or the `loss` that the model returns itself."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class GradientMoments:
    """What the gradients of many backward passes are on average.

    Attributes:
        count: How many samples were seen.
        mean: E[g] for each parameter, by name, of its shape, in float32 at least.
        variance: E[(g - E[g])^2], likewise.
    """

    count: int
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]

    def power(self, name: str) -> Tensor:
        """E[g^2] of a parameter."""
        return self.variance[name] + self.mean[name].square()


def check_counts(score: Backward) -> None:
    """Refuse counts that are not positive.

    Raises:
        DataError: They are not.
    """
    if score.samples < 1 or score.microbatch < 1:
        raise DataError(f"{score!r}: samples and microbatch are at least 1")


def gradient_moments(
    score: Backward, model: nn.Module, batches: Batches | None, names: Collection[str]
) -> GradientMoments:
    """The mean and the variance of the gradients of named parameters, over backward passes of `score.microbatch` samples.

    Raises:
        DataError: No data, or data that do not fit the model or the loss.
        ModelError: A name is none of the model's, or a gradient is not finite.
    """
    mean = {name: torch.zeros_like(weight) for name, weight in weights_of(model, names).items()}
    spread = {name: torch.zeros_like(zero) for name, zero in mean.items()}
    count = 0
    for size, found in gradients(score, model, batches, names):
        count += size
        for name, average in mean.items():
            gradient = widened(name, found[name]) if name in found else torch.zeros_like(average)
            change = gradient - average
            average += change * (size / count)
            spread[name] += size * change * (gradient - average)
    return GradientMoments(count, mean, {name: total / count for name, total in spread.items()})


def gradients(
    score: Backward, model: nn.Module, batches: Batches | None, names: Collection[str]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each piece of data its number of samples, and the gradients of its mean loss by the names of parameters.

    Raises:
        DataError: No data, or data that do not fit the model or the loss.
    """
    copy, parameters = differentiable(model, names)
    for inputs, targets in pieces(score, batches):
        yield batch_size(inputs), gradients_on(copy, parameters, inputs, targets, score.loss)


def pieces(score: Backward, batches: Batches | None) -> Iterator[tuple[Inputs, object]]:
    """The data in pieces for one backward pass each.

    Raises:
        DataError: There are none.
    """
    if batches is None:
        raise DataError(f"{type(score).__name__} needs data: give it batches of (inputs, targets)")
    return take(batches, score.samples, score.microbatch, labelled=True)


def differentiable(model: nn.Module, names: Collection[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in eval mode that shares the weights, and the named parameters in it, which alone want gradients, frozen or not."""
    copy = replicate(
        model, lambda tensor: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    )
    open_attention(copy)
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(name in names)
    return copy.eval(), {name: parameter for name, parameter in copy.named_parameters() if name in names}


def gradients_on(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Inputs,
    targets: object,
    loss: Loss | None,
    twice: bool = False,
) -> dict[str, Tensor]:
    """The gradients of the loss on one batch, `twice` to be differentiated again; parameters that it does not see are left out.

    Raises:
        DataError: The loss is not finite, or does not depend on the parameters; or the batch does not fit the model.
    """
    refuse_inference_mode(model)
    # The fused recurrent kernels of CUDA refuse to go backwards in eval mode.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fused = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent)
    # Of the kernels of attention, only the plain one can be differentiated twice.
    attention = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
    with torch.enable_grad(), fused, attention, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        value = loss_of(model, inputs, targets, loss)
        if not torch.isfinite(value.detach()):
            raise DataError(f"the loss is {value.item()} on a batch; look for values in the data that are not finite")
        if not value.requires_grad:
            raise DataError(
                "the loss does not depend on the parameters; compute it from the model's output, without detach()"
            )
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, create_graph=twice
        )
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def widened(name: str, gradient: Tensor) -> Tensor:
    """A gradient in float32 at least, checked to be finite.

    Raises:
        ModelError: It is not; names the parameter.
    """
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    if not torch.isfinite(gradient).all():
        raise ModelError(
            f"the gradient of {name!r} is not finite in {gradient.dtype}; score the model in float32, or look for values in "
            "the data that are not finite"
        )
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
