"""What the weights that stay should become, so that a layer writes what it wrote before some of its inputs went: least squares.

Pure mathematics on moments: rows of data are summed up before they come here. Everything is solved in float64 on the CPU.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError

logger = logging.getLogger(__name__)

FIRST_DAMPING = 1e-10
"""Relative to the mean of the diagonal: what is tried first where a matrix has no Cholesky factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """What a layer misses, r = y - W x, against the inputs x that it still has: moments over the rows of data.

    Where a constant may be added to the output, they are moments about the means E[r] and E[x].

    Attributes:
        power: E|r|^2, summed over the outputs.
        cross: E[r x^T], `[out, in]`.
        gram: E[x x^T], `[in, in]`.
        means: E[r], `[out]`, and E[x], `[in]`, where a constant may be added; else None.
    """

    power: float
    cross: Tensor
    gram: Tensor
    means: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How to close a gap, and how far that goes.

    Attributes:
        change: What to add to the weight, `[out, in]`.
        shift: What to add to the bias, `[out]`; zero where no constant may be added.
        before: E|r|^2 as it was.
        after: E|r|^2 with the change and the shift, never above `before`.
    """

    change: Tensor
    shift: Tensor
    before: float
    after: float


def refit(weight: Tensor, gram: Tensor, mean: Tensor, kept: Tensor, ridge: float, constant: bool) -> Fit:
    """Make the inputs that stay do the work of those that go.

    Args:
        weight: The dense weight, `[out, in]`.
        gram: E[x x^T] of the dense inputs, not about the mean, `[in, in]`.
        mean: E[x] of the dense inputs, `[in]`.
        kept: The inputs that stay, ascending, `[kept]`.
        ridge: As in `close`.
        constant: Whether a constant may be added to the output.

    Returns:
        The change of `weight[:, kept]` and of the bias.

    Example:
        >>> gram = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two copies of one input
        >>> fit = refit(torch.tensor([[2.0, 3.0]]), gram, torch.zeros(2), torch.tensor([0]), ridge=0.0, constant=True)
        >>> fit.change.tolist(), fit.before, fit.after
        ([[3.0]], 9.0, 0.0)

    Source:
        Least squares on the inputs that stay: Y. He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV
        2017, section 3.1; from the Gram matrix: E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022.
    """
    weight, gram, mean, kept = _wide(weight), _wide(gram), _wide(mean), kept.cpu()
    gone = torch.ones(len(mean), dtype=torch.bool)
    gone[kept] = False
    if constant:
        gram = gram - torch.outer(mean, mean)
    lost = weight[:, gone]
    power = float((lost @ gram[gone][:, gone] * lost).sum())
    means = (lost @ mean[gone], mean[kept]) if constant else None
    return close(Gap(power, lost @ gram[gone][:, kept], gram[kept][:, kept], means), ridge)


def fold_mean(weight: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """What the bias must take over so that outputs keep their mean when inputs go: `W E[x]` over those that go.

    Args:
        weight: The dense weight, `[out, in]`.
        mean: E[x] of the dense inputs, `[in]`.
        kept: The inputs that stay, `[kept]`.

    Returns:
        What to add to the bias, `[out]` float64. Exact where the inputs that go are constant.

    Example:
        >>> fold_mean(torch.tensor([[2.0, 3.0]]), torch.tensor([1.0, 10.0]), kept=torch.tensor([0])).tolist()
        [30.0]

    Source:
        Y. An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), AAAI 2024, section 3.3.
    """
    lost = _wide(mean).clone()
    lost[kept.cpu()] = 0
    return _wide(weight) @ lost


def close(gap: Gap, ridge: float) -> Fit:
    """The change that minimises `E|r - change x - shift|^2 + damping |change|^2`.

    The damping pulls towards the weights as they are, so that with any amount of it the error is at most what it was.

    Args:
        gap: The moments of the rows.
        ridge: The damping, as a share of the mean of the Gram matrix' diagonal, >= 0.

    Returns:
        The change and the shift, with the undamped errors.
    """
    cross, gram = _wide(gap.cross), _wide(gap.gram)
    change = solve(cross, gram, ridge)
    after = gap.power + float((change @ gram * change).sum() - 2 * (change * cross).sum())
    if gap.means is None:
        return Fit(change, torch.zeros(len(cross), dtype=torch.float64), gap.power, min(max(after, 0.0), gap.power))
    missing, mean = map(_wide, gap.means)
    before = gap.power + float(missing.square().sum())
    return Fit(change, missing - change @ mean, before, min(max(after, 0.0), before))


def solve(cross: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """`cross (gram + damping)^-1` by Cholesky; where there is no factor, ten times the damping, and again.

    Args:
        cross: `[out, in]` float64.
        gram: `[in, in]` float64, positive semi-definite but for rounding.
        ridge: The damping as a share of the mean of the diagonal, >= 0.

    Returns:
        `[out, in]` float64; zero where the diagonal is.

    Raises:
        DataError: A moment is not finite.
    """
    if not torch.isfinite(gram).all() or not torch.isfinite(cross).all():
        raise DataError(
            f"the moments of {len(gram)} inputs are not finite, so large are the activations; look at the data and the weights, "
            "or run the model in float64"
        )
    scale = float(gram.diagonal().mean()) if len(gram) else 0.0
    if not scale > 0:
        return torch.zeros_like(cross)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype))
        if not failed:
            return torch.cholesky_solve(cross.mT, factor).mT
        ridge = max(10 * ridge, FIRST_DAMPING)
        logger.info("a Gram matrix of %d inputs is singular; trying a ridge of %.0e", len(gram), ridge)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
