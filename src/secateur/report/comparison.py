"""Dense against pruned: the quantities of both networks, what was asked of them, and how long both took."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv

from secateur.errors import ArtefactError

ENOUGH = 100
"""Times that show a 99th percentile; of fewer, it is close to the slowest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of the dense and of the pruned network.

    Attributes:
        name: What it is, as a noun: `accuracy`, `MACs`, `median latency`.
        unit: `""` for counts and plain numbers, `"B"` for bytes, `"%"`, `"ms"`, or any other text.
        dense: Its value before, in the unit; None where it was not measured.
        pruned: Its value after.
        better: Which way is good.
        compare: `"ratio"` for sizes and times; `"difference"` for accuracies and other metrics.
        spread: Half the interquartile range of dense and of pruned, in the unit, where it was measured repeatedly; of a
            percentile, that of where it lies.
        samples: On how many answers a share was measured; None where that was not told.

    Example:
        >>> row = Row("MACs", "", 41_000_000, 20_500_000, better="lower")
        >>> row.change, row.verdict
        (0.5, 'better')
    """

    name: str
    unit: str
    dense: float | None
    pruned: float | None
    better: Literal["lower", "higher"]
    compare: Literal["ratio", "difference"] = "ratio"
    spread: tuple[float, float] | None = None
    samples: int | None = None

    @property
    def title(self) -> str:
        """What a table calls it."""
        return self.name if self.samples is None else f"{self.name} on {self.samples:,}"

    @property
    def change(self) -> float | None:
        """Pruned over dense, or pruned less dense; None where there is no such number."""
        if self.dense is None or self.pruned is None:
            return None
        if self.compare == "difference":
            return self.pruned - self.dense
        return self.pruned / self.dense if self.dense else None

    @property
    def verdict(self) -> Literal["better", "worse", "same", "unclear"] | None:
        """What the change means; unclear where it is no larger than the two spreads together, or not a number."""
        if self.dense is None or self.pruned is None:
            return None
        gain = self.dense - self.pruned if self.better == "lower" else self.pruned - self.dense
        if math.isnan(gain):
            return "unclear"
        if gain == 0:
            return "same"
        if self.spread is not None and abs(gain) <= sum(self.spread):
            return "unclear"
        return "better" if gain > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Goal:
    """One part of what was asked for.

    Attributes:
        name: The quantity: `MACs`, `accuracy drop`.
        unit: Its unit, as in `Row`.
        limit: The most that is allowed where lower is better, the least where higher is.
        reached: What the pruned network has; None where it was not measured.
        better: Which way is good.
    """

    name: str
    unit: str
    limit: float
    reached: float | None
    better: Literal["lower", "higher"] = "lower"

    @property
    def met(self) -> bool | None:
        """Whether the limit holds; None where it was not measured."""
        if self.reached is None:
            return None
        return self.reached <= self.limit if self.better == "lower" else self.reached >= self.limit


@dataclass(frozen=True, slots=True)
class Times:
    """What a list of measured times comes down to, all in ms.

    Attributes:
        count: How many were measured.
        low: The first quartile.
        median: The median.
        high: The third quartile.
        p99: The 99th percentile, interpolated linearly.
        p99_spread: Half the range that the 99th percentile lies in with a probability of 1/2, whatever the distribution is;
            None of fewer than 100 times, which do not show it.
    """

    count: int
    low: float
    median: float
    high: float
    p99: float
    p99_spread: float | None

    @classmethod
    def of(cls, samples: tuple[float, ...]) -> "Times":
        """Summarise at least one sample."""
        # The share of all times below the k-th of n is distributed as Beta(k, n + 1 - k), here with k = 0.99 (n + 1).
        count = len(samples)
        shares = betaincinv(0.99 * (count + 1), 0.01 * (count + 1), [0.25, 0.75])
        low, median, high, p99, below, above = np.percentile(samples, [25, 50, 75, 99, *(100 * shares)]).tolist()
        return cls(count, low, median, high, p99, (above - below) / 2 if count >= ENOUGH else None)

    @property
    def spread(self) -> float:
        """Half the interquartile range."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """Measured times of single runs of both networks, taken in turns.

    Attributes:
        name: What was run: `batch of 1, 2 threads`.
        dense: Times of the dense network in ms, in the order of measurement; at least one.
        pruned: Times of the pruned network in ms, likewise.
    """

    name: str
    dense: tuple[float, ...]
    pruned: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.dense or not self.pruned:
            raise ArtefactError(f"latency {self.name!r} of the record has no samples: measure it, or leave it out")
        if not all(math.isfinite(time) and time >= 0 for time in (*self.dense, *self.pruned)):
            raise ArtefactError(
                f"latency {self.name!r} of the record: a time must be finite and not negative; got another"
            )

    def rows(self) -> tuple[Row, Row]:
        """The median and the 99th percentile, each with its spread, as rows of the comparison."""
        dense, pruned = Times.of(self.dense), Times.of(self.pruned)
        tails = None if dense.p99_spread is None or pruned.p99_spread is None else (dense.p99_spread, pruned.p99_spread)
        return (
            Row("median latency", "ms", dense.median, pruned.median, "lower", spread=(dense.spread, pruned.spread)),
            Row("p99 latency", "ms", dense.p99, pruned.p99, "lower", spread=tails),
        )
