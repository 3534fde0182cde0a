"""Networks take turns, are timed when they are warm, and compared by the ratio of their medians."""

from collections.abc import Callable

import numpy as np
import pytest

from secateur.errors import DataError
from secateur.targets import Effort, Latency, ratio_of_medians, take_turns
from secateur.targets.turns import MOST_RUNS


class Machine:
    """A clock that only the calls move, and a log of what was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        """Takes `seconds(n)` when it is called for the n-th time, counted from 0."""

        def run() -> None:
            self.now += seconds(self.log.count(name))
            self.log.append(name)

        return run


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_networks_take_turns_in_the_order_given(machine: Machine) -> None:
    calls = {"dense": machine.call("dense", lambda n: 2.0), "pruned": machine.call("pruned", lambda n: 1.0)}

    measured = take_turns(calls, Effort(runs=4, seconds=100.0), machine.clock)

    assert machine.log == ["dense", "pruned"] * (len(machine.log) // 2)
    assert list(measured) == ["dense", "pruned"]
    assert set(measured["dense"].samples) == {2.0}
    assert set(measured["pruned"].samples) == {1.0}


def test_every_network_has_as_many_runs(machine: Machine) -> None:
    calls = {name: machine.call(name, lambda n: 1.0) for name in "abc"}

    measured = take_turns(calls, Effort(runs=7, seconds=0.0), machine.clock)

    assert {len(latency.samples) for latency in measured.values()} == {7}
    assert [machine.log.count(name) for name in "abc"] == [7 + latency.warmup for latency in measured.values()]


def test_the_runs_asked_for_are_made_however_long_they_take(machine: Machine) -> None:
    measured = take_turns({"slow": machine.call("slow", lambda n: 60.0)}, Effort(runs=5, seconds=10.0), machine.clock)

    assert measured["slow"].samples == (60.0,) * 5
    assert measured["slow"].warmup == 1


def test_beyond_the_runs_asked_for_time_is_the_limit(machine: Machine) -> None:
    measured = take_turns({"a": machine.call("a", lambda n: 1.0)}, Effort(runs=5, seconds=50.0), machine.clock)

    assert len(measured["a"].samples) == 50


def test_a_fast_network_is_not_run_for_ever(machine: Machine) -> None:
    measured = take_turns({"fast": machine.call("fast", lambda n: 1e-6)}, Effort(runs=5, seconds=50.0), machine.clock)

    assert len(measured["fast"].samples) == MOST_RUNS


def test_the_warm_up_lasts_until_the_slowest_to_settle_is_stable(machine: Machine) -> None:
    calls = {
        "steady": machine.call("steady", lambda n: 1.0),
        "lazy": machine.call("lazy", lambda n: max(1.0, 16.0 - n)),  # 16, 15, ... 1 s, and then 1 s each
    }

    measured = take_turns(calls, Effort(runs=5, seconds=1e6), machine.clock)

    assert measured["lazy"].settled
    # Run 15 is the first of 1 s; the medians of two windows of five agree once the earlier one has three of them.
    assert measured["steady"].warmup == measured["lazy"].warmup == 23
    assert set(measured["lazy"].samples) == {1.0}


def test_a_network_that_never_settles_is_measured_and_says_so(machine: Machine) -> None:
    measured = take_turns(
        {"drift": machine.call("drift", lambda n: 1.3**n)}, Effort(runs=3, seconds=60.0), machine.clock
    )

    assert not measured["drift"].settled
    assert len(measured["drift"].samples) == 3


@pytest.mark.parametrize(
    ("runs", "seconds", "message"),
    [(1, 1.0, "1 runs give no median"), (5, -1.0, "limit of -1.0 s"), (5, float("nan"), "limit of nan s")],
)
def test_an_effort_that_measures_nothing_is_refused(runs: int, seconds: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Effort(runs, seconds)


def test_without_networks_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="no network to measure"):
        take_turns({}, Effort())


def test_statistics_are_those_of_the_samples() -> None:
    latency = Latency(tuple(float(n) for n in range(101)))

    assert latency.median == 50.0
    assert latency.quartiles == (25.0, 75.0)
    assert latency.spread == 50.0
    assert latency.p99 == 99.0


def test_the_ratio_is_that_of_the_medians_and_lies_in_its_interval() -> None:
    noise = np.random.default_rng(0)
    dense, pruned = (Latency(tuple(base * noise.lognormal(0, 0.1, 60))) for base in (2.0, 1.0))

    ratio = ratio_of_medians(dense, pruned, np.random.default_rng(1))

    assert ratio.value == dense.median / pruned.median
    assert ratio.low < ratio.value < ratio.high
    assert ratio.level == 0.95


def test_the_same_generator_gives_the_same_interval() -> None:
    noise = np.random.default_rng(0)
    dense, pruned = (Latency(tuple(noise.lognormal(0, 0.1, 30))) for _ in range(2))

    first, second, other = (ratio_of_medians(dense, pruned, np.random.default_rng(seed)) for seed in (3, 3, 4))

    assert first == second
    assert first != other


def test_what_slows_both_networks_down_in_one_round_does_not_widen_the_interval() -> None:
    shared = np.random.default_rng(0).lognormal(0, 1.0, 51)

    ratio = ratio_of_medians(Latency(tuple(2 * shared)), Latency(tuple(shared)), np.random.default_rng(1))

    assert (ratio.low, ratio.value, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    noise, hits, trials = np.random.default_rng(0), 0, 120
    for _ in range(trials):
        dense, pruned = (Latency(tuple(median * noise.lognormal(0, 0.2, 41))) for median in (3.0, 2.0))
        ratio = ratio_of_medians(dense, pruned, noise, level=0.9, resamples=200)
        hits += ratio.low <= 1.5 <= ratio.high

    # Four standard deviations of a binomial share around the level; the percentile interval is known to be a little off.
    assert hits / trials == pytest.approx(0.9, abs=4 * (0.9 * 0.1 / trials) ** 0.5)


def test_samples_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(DataError, match="2 and 1 samples do not pair up"):
        ratio_of_medians(Latency((1.0, 2.0)), Latency((1.0,)), np.random.default_rng(0))
