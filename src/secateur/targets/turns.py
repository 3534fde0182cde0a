"""How long does each of several networks take, so that they can be compared? Knows no runtime: it calls what it is given.

The networks take turns, A B A B, in one process: what slows the machine down for a while slows all of them down alike, and the
ratio of their medians stays. Times are of single calls, so that their spread and 99th percentile mean what they say.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from secateur.errors import DataError

MOST_RUNS = 1000
"""Enough for a 99th percentile; no more are made unless asked for, however fast the network."""

_WINDOW = 5
_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        runs: At least so many timed runs of each network, at least 2.
        seconds: When these are done, go on until so much time has passed (or 1000 runs); the warm-up ends after that time, too.

    Raises:
        DataError: Fewer than 2 runs, or a time that is negative or not finite.
    """

    runs: int = 30
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.runs < 2:
            raise DataError(f"{self.runs} runs give no median with a spread; measure at least 2, better 30")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise DataError(f"a time limit of {self.seconds} s; give a finite number of seconds from 0")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long single runs took, after a warm-up.

    Attributes:
        samples: Every timed run in seconds, in the order of measurement.
        warmup: How many runs came before and were left out.
        settled: Whether the times were stable when the warm-up ended: the medians of the last five runs and of the five before
            them less than 5 % apart, for every network that took turns.
    """

    samples: tuple[float, ...]
    warmup: int = 0
    settled: bool = True

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return float(np.median(self.samples))

    @property
    def p99(self) -> float:
        """The 99th percentile in seconds, interpolated linearly; with fewer than 100 samples close to the slowest."""
        return float(np.percentile(self.samples, 99))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in seconds."""
        low, high = np.percentile(self.samples, [25, 75])
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """The interquartile range, in seconds."""
        low, high = self.quartiles
        return high - low


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two medians, with the interval that holds it with probability `level`."""

    value: float
    low: float
    high: float
    level: float


def take_turns(
    calls: Mapping[str, Callable[[], object]], effort: Effort, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Latency]:
    """Time several calls, each once a round, in their given order: A B A B.

    Args:
        calls: What to time, by name. A call returns when its work is done.
        effort: How many runs, and how long.
        clock: The time in seconds.

    Raises:
        DataError: There is nothing to time.

    Example:
        >>> latencies = take_turns(
        ...     {"short": lambda: sum(range(9)), "long": lambda: sum(range(9999))}, Effort(5, seconds=0)
        ... )
        >>> len(latencies["short"].samples)
        5
    """
    if not calls:
        raise DataError("no network to measure; give at least one, by name")
    warm: dict[str, list[float]] = {name: [] for name in calls}
    started = clock()
    while True:
        _round(calls, warm, clock)
        settled = all(_stable(times) for times in warm.values())
        if settled or clock() - started >= effort.seconds:
            break
    timed: dict[str, list[float]] = {name: [] for name in calls}
    started, done = clock(), 0
    while done < effort.runs or (done < MOST_RUNS and clock() - started < effort.seconds):
        _round(calls, timed, clock)
        done += 1
    return {name: Latency(tuple(times), warmup=len(warm[name]), settled=settled) for name, times in timed.items()}


def ratio_of_medians(
    first: Latency, second: Latency, generator: np.random.Generator, *, level: float = 0.95, resamples: int = 2000
) -> Ratio:
    """The median of `first` over the median of `second`: with dense and pruned, the speed-up.

    The interval is the bootstrap's percentile interval. Whole rounds are drawn, so that both networks keep what they shared.

    Args:
        first: Taken in turns with `second`, so that the samples pair up.
        second: Likewise.
        generator: Draws the rounds.
        level: The probability that the interval holds the ratio, in (0, 1).
        resamples: How many times to draw.

    Raises:
        DataError: The two were not measured together.

    Source:
        B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    a, b = np.array(first.samples), np.array(second.samples)
    if len(a) != len(b) or not len(a):
        raise DataError(f"{len(a)} and {len(b)} samples do not pair up; measure both networks in one call")
    draws = (generator.integers(len(a), size=len(a)) for _ in range(resamples))
    ratios = [np.median(a[rounds]) / np.median(b[rounds]) for rounds in draws]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high), level)


def _round(
    calls: Mapping[str, Callable[[], object]], times: dict[str, list[float]], clock: Callable[[], float]
) -> None:
    for name, call in calls.items():
        started = clock()
        call()
        times[name].append(clock() - started)


def _stable(times: list[float]) -> bool:
    if len(times) < 2 * _WINDOW:
        return False
    before, now = np.median(times[-2 * _WINDOW : -_WINDOW]), np.median(times[-_WINDOW:])
    return bool(abs(now - before) <= _TOLERANCE * before)
