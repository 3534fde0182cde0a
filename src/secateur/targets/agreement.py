"""Does a target compute what PyTorch computes? Pure: tensors in, the largest difference out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import TargetError

TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference that is rounding, by the precision of the arithmetic: two orders above what a layer rounds off in single
precision, where deep networks add up, and one above it in half."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the outputs of a target are to PyTorch's.

    Attributes:
        difference: The largest of `max |a - b| / max |a|` over the outputs, where `a` is PyTorch's and `b` the target's.
        tolerance: The most that is allowed.
    """

    difference: float
    tolerance: float


def agreement(
    target: str, expected: Sequence[Tensor], given: Sequence[Tensor], precision: torch.dtype = torch.float32
) -> Agreement:
    """Compare the outputs of a target with PyTorch's.

    Args:
        target: What gave them, for an error.
        expected: What PyTorch gives.
        given: What the target gives, in the same order.
        precision: What the target computes in; where an output of PyTorch is less precise, the tolerance is that of the output.

    Returns:
        The largest difference, and what is allowed.

    Raises:
        TargetError: They are not as many, not of the same shapes, or differ by more; says which.

    Example:
        >>> round(agreement("A", [torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -4.002])]).difference, 6)
        0.0005
    """
    shapes, others = [[list(one.shape) for one in outputs] for outputs in (expected, given)]
    if shapes != others:
        raise TargetError(
            f"{target} gives outputs of shapes {others}, where PyTorch gives {shapes}; return tensors alone from the model"
        )
    tolerance = max(TOLERANCES.get(dtype, 0.0) for dtype in (precision, *(one.dtype for one in expected)))
    differences = [_difference(*pair) for pair in zip(expected, given, strict=True)]
    for number, difference in enumerate(differences):
        if difference > tolerance:
            raise TargetError(
                f"{target} computes something else than PyTorch: output {number} of {len(differences)}, of shape "
                f"{shapes[number]}, is off by {difference:.1e} of its largest value, where {tolerance:g} is allowed; take "
                "another target, version or precision of the runtime, and do not trust what this one computes"
            )
    return Agreement(max(differences, default=0.0), tolerance)


def worst(found: Iterable[Agreement | None]) -> Agreement | None:
    """That of the largest difference; None where PyTorch ran all."""
    return max((one for one in found if one is not None), key=lambda one: one.difference, default=None)


def _difference(expected: Tensor, given: Tensor) -> float:
    """How far off, as a part of the largest finite number; not-finite numbers must be the same."""
    a, b = expected.detach().cpu().double(), given.detach().cpu().double()
    differs = ~((a == b) | (a.isnan() & b.isnan()))
    if not differs.any():
        return 0.0
    off = (a - b).abs()[differs].max()
    largest = a[a.isfinite()].abs().max() if a.isfinite().any() else torch.zeros(())
    return float((off / largest).nan_to_num(nan=torch.inf, posinf=torch.inf))
