"""How many weights go of each layer where all are compared: the lowest of all, those below a threshold, those not significant."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf, isnan, sqrt
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from secateur.allocate.budget import exact_share
from secateur.allocate.discovery import largest_discovery
from secateur.errors import BudgetError, DataError
from secateur.sparse.allocation.divide import Share
from secateur.sparse.counts import count_of, share_of


@runtime_checkable
class Cutoff(Protocol):
    """Decides by the scores of all weights how many go, in all and of each layer, so that no sparsity is asked for."""

    def cut(self, layers: Sequence[Share]) -> list[int]:
        """How many of the lowest scores go of each layer."""
        ...


@dataclass(frozen=True, slots=True)
class Lowest:
    """The lowest scores of all layers, wherever they are; this is what `patterns.Unstructured("global")` does by itself.

    Args:
        floor: The least share that each layer keeps, in [0, 1), so that none is emptied.

    Raises:
        DataError: The floor is out of range.
        BudgetError: When called: the floor leaves too little that can go.

    Example:
        >>> layers = [Share(name, (), 4, lambda at=at: torch.arange(at, at + 4.0)) for name, at in (("a", 0), ("b", 9))]
        >>> Lowest()(layers, 0.5), Lowest(floor=0.25)(layers, 0.5)
        ([4, 0], [3, 1])
    """

    floor: float | Fraction = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise DataError(f"{self!r}: the floor is at least 0 and below 1")

    def __call__(self, layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        """Divide what goes; see `Allocation`."""
        count = count_of(sparsity, sum(layer.units for layer in layers))
        most = [layer.units - ceil(share_of(self.floor) * layer.units) for layer in layers]
        if count > sum(most):
            raise BudgetError(
                f"{count} weights are to go, and {self} lets {sum(most)}; ask for less, or lower the floor"
            )
        lowest = [layer.scores().flatten().sort().values[:n] for layer, n in zip(layers, most, strict=True)]
        places = torch.repeat_interleave(torch.tensor([len(scores) for scores in lowest]))
        chosen = torch.cat(lowest).argsort(stable=True)[:count].cpu()
        return torch.bincount(places[chosen], minlength=len(layers)).tolist()


@dataclass(frozen=True, slots=True)
class Below:
    """All weights whose score is below a threshold.

    Args:
        threshold: In the unit of the score, such as `|w|` for `scores.Magnitude(1)`.
        quantile: Instead: the threshold is this quantile of the scores of all weights that are not zero, in [0, 1]. Of equal
            scores all stay, where a sparsity lets some go.

    Raises:
        DataError: Not one of the two is given, or it is out of range.

    Example:
        >>> layers = [Share(name, (), 4, lambda at=at: torch.arange(at, at + 4.0)) for name, at in (("a", 0), ("b", 2))]
        >>> Below(3.0).cut(layers), Below(quantile=0.25).cut(layers)
        ([3, 1], [2, 0])
    """

    threshold: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.quantile is None):
            raise DataError(f"{self!r}: give a threshold or a quantile, such as Below(0.01) or Below(quantile=0.5)")
        if self.threshold is not None and isnan(self.threshold):
            raise DataError(f"{self!r}: the threshold is a number")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise DataError(f"{self!r}: a quantile is at least 0 and at most 1")

    def cut(self, layers: Sequence[Share]) -> list[int]:
        """Count what goes; see `Cutoff`."""
        scores = [layer.scores() for layer in layers]
        threshold = self._quantile(_live(scores)) if self.threshold is None else self.threshold
        return [int((each < threshold).sum()) for each in scores]

    def _quantile(self, scores: Tensor) -> float:
        """One of the scores, such that the share of them, rounded up, lies below where all differ."""
        place = ceil(exact_share("quantile", self.quantile, zero=True) * (len(scores) - 1))
        return float(scores.sort().values[place]) if len(scores) else inf


@dataclass(frozen=True, slots=True)
class Insignificant:
    """All weights of which the data do not show that they are not zero.

    Scores are read as z-values, the sizes of weights in standard errors: take `scores.Wald()`. Among the weights that stay, the
    share of those that are truly zero is at most `rate` on average, where tests are independent or positively dependent. Weights
    that are zero already are not tested.

    Args:
        rate: The false discovery rate, in (0, 1).

    Raises:
        DataError: The rate is out of range.

    Example:
        >>> z = torch.tensor([0.5, 1.9, 2.5, 9.0])  # p = 0.617, 0.057, 0.012, 0.000
        >>> Insignificant(0.05).cut([Share("a", (), 4, lambda: z)])
        [2]

    Source:
        Y. Benjamini and Y. Hochberg, "Controlling the False Discovery Rate", Journal of the Royal Statistical Society B 1995.
    """

    rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise DataError(f"{self!r}: the rate is above 0 and below 1")

    def cut(self, layers: Sequence[Share]) -> list[int]:
        """Count what goes; see `Cutoff`."""
        scores = [layer.scores() for layer in layers]
        limit = largest_discovery(_p_values(_live(scores)).numpy(), self.rate)
        return [int((_p_values(each) > limit).sum()) for each in scores]


def _p_values(z: Tensor) -> Tensor:
    """How likely a weight that is zero looks at least so far from it: two-sided, in float64."""
    return torch.erfc(z.double().clamp(min=0) / sqrt(2))


def _live(scores: Sequence[Tensor]) -> Tensor:
    """The scores of all weights that are not zero yet, in one row on the CPU, float64."""
    everything = torch.cat([each.flatten().double().cpu() for each in scores])
    return everything[everything > -torch.inf]
