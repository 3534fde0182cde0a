"""What the weights that stay should become, so that a layer writes what it wrote before some of its inputs went: least squares.

Pure mathematics on moments: rows of data are summed up before they come here. Everything is solved in float64 on the CPU.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FIRST_DAMPING = 1e-10
"""Relative to the mean of the diagonal: what is tried first where a matrix has no Cholesky factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """What a layer misses, r = y - W x, against the inputs x that it still has; moments over the rows of data.

    Attributes:
        power: E|r|^2, summed over the outputs.
        cross: E[r x^T], `[out, in]`.
        gram: E[x x^T], `[in, in]`.
        missing: E[r], `[out]`.
        mean: E[x], `[in]`.
    """

    power: float
    cross: Tensor
    gram: Tensor
    missing: Tensor
    mean: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How to close a gap, and how far that goes.

    Attributes:
        change: What to add to the weight, `[out, in]`.
        shift: What to add to the bias, `[out]`; zero where no constant is allowed.
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
        gram: E[x x^T] of the dense inputs, `[in, in]`.
        mean: E[x] of the dense inputs, `[in]`.
        kept: The inputs that stay, ascending, `[kept]`.
        ridge: As in `close`.
        constant: As in `close`.

    Returns:
        The change of `weight[:, kept]` and of the bias.

    Example:
        >>> gram = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two copies of one input
        >>> fit = refit(torch.tensor([[2.0, 3.0]]), gram, torch.zeros(2), torch.tensor([0]), ridge=0.0, constant=True)
        >>> fit.change.tolist(), fit.after
        ([[3.0]], 0.0)

    Source:
        Least squares with the Gram matrix: Y. He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
        equation 3; E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 3.
    """
    weight, gram, mean, kept = _wide(weight), _wide(gram), _wide(mean), kept.cpu()
    gone = torch.ones(len(mean), dtype=torch.bool)
    gone[kept] = False
    lost = weight[:, gone]
    power = float((lost @ gram[gone][:, gone] * lost).sum())
    return close(
        Gap(power, lost @ gram[gone][:, kept], gram[kept][:, kept], lost @ mean[gone], mean[kept]), ridge, constant
    )


def close(gap: Gap, ridge: float, constant: bool) -> Fit:
    """The change that minimises `E|r - change x - shift|^2 + damping |change|^2`.

    The damping pulls towards the weights as they are, so that any amount of it leaves a smaller error than no change at all.

    Args:
        gap: The moments of the rows.
        ridge: The damping, as a share of the mean of the Gram matrix' diagonal, >= 0; infinity = change nothing but the constant.
        constant: Whether a constant may be added to the output. If so, means are taken out first.

    Returns:
        The change and the shift, with the undamped errors.
    """
    power, cross, gram = gap.power, _wide(gap.cross), _wide(gap.gram)
    missing, mean = _wide(gap.missing), _wide(gap.mean)
    if constant:
        power = power - float(missing.square().sum())
        cross, gram = cross - torch.outer(missing, mean), gram - torch.outer(mean, mean)
    change = torch.zeros_like(cross) if ridge == float("inf") else solve(cross, gram, ridge)
    shift = missing - change @ mean if constant else torch.zeros_like(missing)
    after = power + float((change @ gram * change).sum() - 2 * (change * cross).sum())
    return Fit(change, shift, gap.power, max(after, 0.0))


def solve(cross: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """`cross (gram + damping)^-1` by Cholesky; where there is no factor, ten times the damping, and again.

    Args:
        cross: `[out, in]` float64.
        gram: `[in, in]` float64, positive semi-definite but for rounding.
        ridge: The damping as a share of the mean of the diagonal, >= 0.

    Returns:
        `[out, in]` float64; zero where the diagonal is.
    """
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
