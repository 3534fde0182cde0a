"""Scores made for networks before training: what of the signal (SynFlow) or of the gradient (GraSP) passes a weight."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError
from secateur.torch.batches import Batches, Loss, batch_size, check_repeatable, cross_entropy, logits_of, take
from secateur.torch.capture import Inputs
from secateur.torch.replicate import replicate
from secateur.torch.scores.backward import check_counts, differentiable, gradient_moments, gradients_on, pieces, widened
from secateur.torch.scores.weights import weights_of


@dataclass(frozen=True, slots=True)
class SynFlow:
    """How much of what flows through the network passes a weight: `|w| dR/d|w|`, R the sum of the outputs for an input of ones.

    All weights count with their sizes. Biases and the means of batch norms let nothing through: R is what the ones add to the
    outputs for zeros, computed in float64. Needs no data but the shape of a sample, and a model that is linear where all is
    positive, as with rectifiers; a layer norm or a softmax holds up the flow.

    Every layer that all paths pass has the same sum of scores, R, so that a smaller layer keeps more of its weights. The paper
    lets weights go in 100 rounds, and scores anew in each: then no layer is emptied before it must be.

    Raises:
        DataError: When called: no data, or inputs without a floating-point tensor.
        ModelError: When called: gradients that are not finite; names the parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0], [-1.0]]))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[-2.0, 5.0]]))
        >>> {
        ...     name: w.tolist()
        ...     for name, w in SynFlow().of_model(model, [torch.zeros(1, 1)], ["0.weight", "1.weight"]).items()
        ... }
        {'0.weight': [[6.0], [5.0]], '1.weight': [[6.0, 5.0]]}

    Source:
        H. Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020.
    """

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        if batches is None:
            raise DataError("SynFlow needs the shape of a sample: give it batches; their values are not looked at")
        inputs, _ = next(take(batches, 1, 1))
        copy, parameters = differentiable(replicate(model, _positive), names)
        for module in copy.modules():
            if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
                module.running_mean.zero_()
        ones, zeros = (gradients_on(copy, parameters, _filled(inputs, x), None, _total) for x in (1.0, 0.0))
        flows = {name: widened(name, ones[name] - zeros[name]) for name in ones}
        weights = weights_of(copy, names)
        return {name: weight * flows[name] if name in flows else weight * 0 for name, weight in weights.items()}


@dataclass(frozen=True, slots=True)
class GraSP:
    """How much of the gradient goes with a weight: `w H g`, half of what its removal takes from `|g|^2`, to first order.

    A weight whose removal makes the gradient larger scores below zero, and goes first. g and H are the gradient and the Hessian
    of the mean loss in the parameters that count; their product comes from a second backward pass. The paper's score has the
    other sign: there the highest go.

    Args:
        samples: How many samples to use, > 0.
        microbatch: The most samples in one backward pass, which bounds the memory, > 0.
        loss: Takes the model's output and the targets; None = cross-entropy of the logits over the temperature.
        temperature: What the logits are divided by where no `loss` is given, > 0. The paper's code takes 200, for networks before
            training, and makes all predictions almost even; 1 is plain cross-entropy.

    Raises:
        DataError: A field is out of range. When called: no data, or data that do not fit the model or the loss.
        ModelError: When called: gradients that are not finite; names the parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(3.0)
        >>> score = GraSP(loss=lambda output, targets: output.square().mean())  # g = 2 w, H = 2
        >>> score.of_model(model, [torch.ones(4, 1)], ["weight"])["weight"].item()
        36.0

    Source:
        C. Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020.
    """

    samples: int = 512
    microbatch: int = 64
    loss: Loss | None = None
    temperature: float = 200.0

    def __post_init__(self) -> None:
        check_counts(self)
        if not 0 < self.temperature < inf:
            raise DataError(f"{self!r}: the temperature is positive and finite; 1 is plain cross-entropy")

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        score = replace(self, loss=self.loss or self._tempered)
        if batches is not None:
            check_repeatable(batches, 2, "passes of GraSP")
        moments = gradient_moments(score, model, batches, names)
        products = {name: torch.zeros_like(mean) for name, mean in moments.mean.items()}
        copy, parameters = differentiable(model, names)
        for inputs, targets in pieces(score, batches):
            found = gradients_on(copy, parameters, inputs, targets, score.loss, twice=True)
            for name, product in _times_hessian(found, parameters, moments.mean).items():
                products[name] += widened(name, product) * (batch_size(inputs) / moments.count)
        return {name: weight * products[name] for name, weight in weights_of(model, names).items()}

    def _tempered(self, output: Any, targets: Any) -> Tensor:
        return cross_entropy(logits_of(output) / self.temperature, targets)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _positive(tensor: Tensor) -> Tensor:
    """A parameter's sizes, or a buffer, in float64."""
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    wide = tensor.detach().to(torch.float64)
    return wide.abs() if isinstance(tensor, nn.Parameter) else wide.clone()


def _filled(inputs: Inputs, value: float) -> Inputs:
    """Inputs with one value in all floating-point tensors, in float64; masks and indices stay."""
    if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(inputs)):
        raise DataError("SynFlow puts ones into a model, and this one reads integers alone; choose another score")

    def fill(tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, value, dtype=torch.float64) if tensor.is_floating_point() else tensor

    filled: Inputs = pytree.tree_map_only(Tensor, fill, inputs)
    return filled


def _total(output: Any, targets: object) -> Tensor:  # noqa: ARG001 - as a loss is called
    """The sum of all that a model returns."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.sum() for leaf in leaves]).sum()


def _times_hessian(
    gradients: dict[str, Tensor], parameters: dict[str, Tensor], vector: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian of which the gradients are the first half, times a vector; what it does not reach is left out."""
    with torch.enable_grad():
        slope = torch.stack([(gradient * vector[name]).sum() for name, gradient in gradients.items()]).sum()
    if not slope.requires_grad:
        return {}
    found: tuple[Tensor | None, ...] = torch.autograd.grad(slope, list(parameters.values()), allow_unused=True)
    return {name: product for name, product in zip(parameters, found, strict=True) if product is not None}
