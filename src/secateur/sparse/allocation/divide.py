"""How the weights that go are divided among layers: evenly, by the shape of a layer, or by its outliers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from torch import Tensor, nn

from secateur.errors import DataError
from secateur.sparse.counts import apportion, count_of


@dataclass(frozen=True, slots=True)
class Alone:
    """What it is that one layer alone is sparse, and all others dense.

    Attributes:
        error: E|(W - W') x|^2 / E|W x|^2 on what the dense model gives the layer.
        model: Makes such a model, in eval mode; it shares the other weights with the dense one, as long as that is dense.
    """

    error: float
    model: Callable[[], nn.Module]


def _unmeasured(count: int) -> Alone:
    raise DataError(
        f"nothing can be measured of this layer without {count} units; give it a way to become sparse alone"
    )


@dataclass(frozen=True, slots=True)
class Share:
    """A layer that can give some of its weights.

    Attributes:
        name: The weight's.
        dims: Inputs, outputs, and the sides of a kernel.
        units: How many units of the pattern it has.
        scores: Gives what its weights are worth, `[groups, out, in]`.
        alone: Makes it sparse alone, without so many units, by the scores and solvers of the job.
    """

    name: str
    dims: tuple[int, ...]
    units: int
    scores: Callable[[], Tensor]
    alone: Callable[[int], Alone] = _unmeasured


class Allocation(Protocol):
    """Says how many units go of each layer."""

    def __call__(self, layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        """Divide what goes.

        Args:
            layers: All layers that can become sparse.
            sparsity: The share of all their units that goes.

        Returns:
            How many units go of each; they add up to the share of all, to the nearest unit.
        """
        ...


def even(layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
    """The same share of every layer, rounded layer by layer."""
    return [count_of(sparsity, layer.units) for layer in layers]


def erdos_renyi(layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
    """What stays of a layer is in proportion to the sum of its dims: small layers stay denser than large ones.

    Source:
        D. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", Nature
        Communications 2018; with kernels as "ERK" of U. Evci et al., "Rigging the Lottery", ICML 2020, section 3 (1).
    """
    total = sum(layer.units for layer in layers)
    kept = apportion(total - count_of(sparsity, total), [sum(x.dims) for x in layers], [x.units for x in layers])
    return [layer.units - n for layer, n in zip(layers, kept, strict=True)]


@dataclass(frozen=True, slots=True)
class OutlierWeighted:
    """Layers with more outliers among their scores stay denser.

    Args:
        times: What is an outlier: so many times the mean score of its layer, > 0.
        spread: How far the share that goes of a layer may be from that of all, in [0, 1).

    Raises:
        DataError: A field is out of range.

    Source:
        L. Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", ICML 2024, for each matrix by itself.
    """

    times: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        if not self.times > 0 or not 0 <= self.spread < 1:
            raise DataError(f"{self!r}: times is above 0, spread at least 0 and below 1")

    def __call__(self, layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        """Divide what goes; see `Allocation`."""
        total = sum(layer.units for layer in layers)
        shares = [self._outliers(layer.scores()) for layer in layers]
        low, high = min(shares), max(shares)
        scale = 2 * self.spread / (high - low) if high > low else 0.0
        middle = sum((share - low) * scale * layer.units for share, layer in zip(shares, layers, strict=True)) / total
        kept = [
            max(0.0, 1 - float(sparsity) + (share - low) * scale - middle) * layer.units
            for share, layer in zip(shares, layers, strict=True)
        ]
        counts = apportion(total - count_of(sparsity, total), list(map(Fraction, kept)), [x.units for x in layers])
        return [layer.units - n for layer, n in zip(layers, counts, strict=True)]

    def _outliers(self, scores: Tensor) -> float:
        """The share of scores that are so many times the mean."""
        live = scores[scores.isfinite()]
        return float((live > self.times * live.mean()).double().mean()) if live.numel() else 0.0
