"""What comes of making a model sparse: the model, its plan, and what became of each weight."""

from dataclasses import dataclass
from math import prod

from torch import nn

from secateur.sparse.plan import WeightPlan
from secateur.sparse.rounding import Rounding


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one weight.

    Attributes:
        name: The parameter, and which rows of it where it is a part.
        shape: `(groups, out, in)`.
        zeros: How many weights went; those that stay may be zero as well.
        error: E|(W - W') x|^2 / E|W x|^2 on the calibration data, undamped; None where it was not measured.
    """

    name: str
    shape: tuple[int, int, int]
    zeros: int
    error: float | None

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / prod(self.shape)


@dataclass(frozen=True, slots=True)
class SparseResult:
    """What `sparsify` gives back.

    Attributes:
        model: A copy of the model with zeros; the caller's is untouched.
        plan: Which weights stay.
        report: What became of each weight, in the order in which they run.
        samples: How many samples each layer was solved on; 0 where none was.
        rounding: What the weights that stay were rounded to, or None.
    """

    model: nn.Module
    plan: WeightPlan
    report: tuple[LayerReport, ...]
    samples: int = 0
    rounding: Rounding | None = None

    @property
    def zeros(self) -> int:
        """How many weights went."""
        return sum(layer.zeros for layer in self.report)

    def __str__(self) -> str:
        total = sum(prod(layer.shape) for layer in self.report)
        head = f"{self.zeros / total:.1%} of {total:,} weights are zero, in {len(self.report)} layers"
        bits = "" if self.rounding is None else f"; the others have {self.rounding}"
        rows = [
            f"  {layer.name:<44} {layer.sparsity:>6.1%}  {'' if layer.error is None else f'error {layer.error:.2e}'}"
            for layer in self.report
        ]
        return "\n".join([head + bits, *rows])
