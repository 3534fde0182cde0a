"""Dense against pruned: what a change is, and what it means."""

import math

import numpy as np
import pytest

from secateur.errors import ArtefactError
from secateur.report import Goal, LatencyRecord, Row, Times


def test_sizes_compare_as_a_ratio_and_metrics_as_a_difference() -> None:
    assert Row("MACs", "", 40.0, 10.0, "lower").change == 0.25
    assert Row("accuracy", "%", 92.0, 90.5, "higher", "difference").change == -1.5


@pytest.mark.parametrize(("dense", "pruned"), [(None, 1.0), (1.0, None), (0.0, 1.0)])
def test_without_both_numbers_there_is_no_ratio(dense: float | None, pruned: float | None) -> None:
    assert Row("MACs", "", dense, pruned, "lower").change is None


@pytest.mark.parametrize(
    ("dense", "pruned", "better", "verdict"),
    [
        (2.0, 1.0, "lower", "better"),
        (2.0, 1.0, "higher", "worse"),
        (1.0, 2.0, "lower", "worse"),
        (1.0, 2.0, "higher", "better"),
        (1.0, 1.0, "lower", "same"),
        (1.0, math.nan, "higher", "unclear"),
        (1.0, None, "lower", None),
    ],
)
def test_the_verdict_follows_the_direction_that_is_good(dense, pruned, better, verdict) -> None:
    assert Row("quantity", "", dense, pruned, better).verdict == verdict


def test_a_change_within_both_spreads_is_unclear() -> None:
    assert Row("latency", "ms", 10.0, 9.5, "lower", spread=(0.3, 0.3)).verdict == "unclear"
    assert Row("latency", "ms", 10.0, 9.3, "lower", spread=(0.3, 0.3)).verdict == "better"


def test_a_goal_is_met_up_to_its_limit_and_unknown_without_a_measurement() -> None:
    assert Goal("MACs", "", 10.0, 10.0).met is True
    assert Goal("MACs", "", 10.0, 10.1).met is False
    assert Goal("accuracy", "%", 90.0, 89.0, "higher").met is False
    assert Goal("MACs", "", 10.0, None).met is None


def test_times_are_the_percentiles_of_the_samples() -> None:
    times = Times.of(tuple(float(n) for n in range(101)))  # the n-th percentile of 0..100 is n

    assert (times.count, times.low, times.median, times.high, times.p99) == (101, 25.0, 50.0, 75.0, 99.0)
    assert times.spread == 25.0


@pytest.mark.parametrize("count", [100, 1000])
def test_the_spread_of_a_p99_is_what_repeated_measurements_show(count: int) -> None:
    """Against 2,000 measurements of as many times each, of a skewed distribution."""
    samples = np.random.default_rng(0).gamma(2, 1, (2000, count))
    low, high = np.percentile(np.percentile(samples, 99, axis=1), [25, 75])
    mean = np.mean([Times.of(tuple(each)).p99_spread or 0.0 for each in samples])
    assert 0.8 <= mean / ((high - low) / 2) <= 1.2  # of 100, half of the range above the slowest is not seen: 0.85


def test_the_rows_of_a_latency_are_the_medians_and_the_tails_of_each_network() -> None:
    generator = np.random.default_rng(3)
    dense, pruned = generator.gamma(2, 1, 301), generator.gamma(2, 1, 57)  # of different lengths
    median, tail = LatencyRecord("batch of 1", tuple(dense), tuple(pruned)).rows()

    assert (median.dense, median.pruned) == (np.median(dense), np.median(pruned))
    assert (tail.dense, tail.pruned) == (np.percentile(dense, 99), np.percentile(pruned, 99))
    assert median.spread is not None
    assert tail.spread is None  # of 57 times
    long = LatencyRecord("batch of 1", tuple(dense), tuple(dense)).rows()[1]
    assert long.spread == 2 * (Times.of(tuple(dense)).p99_spread,)
    assert long.verdict == "same"
    assert median.better == tail.better == "lower"


@pytest.mark.parametrize(("dense", "message"), [((), "no samples"), ((1.0, math.inf), "finite"), ((-1.0,), "negative")])
def test_times_that_cannot_be_are_refused(dense, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        LatencyRecord("batch of 1", dense, (1.0,))
