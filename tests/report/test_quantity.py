"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.report import Row
from secateur.report.quantity import comparison, measured, quantity, ranges, share


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (64, "", "64"),
        (999, "", "999"),
        (1000, "", "1 k"),
        (999_700, "", "1.00 M"),
        (272_474, "", "272 k"),
        (40_813_184, "", "40.8 M"),
        (70.6e9, "", "70.6 G"),
        (0.91437, "", "0.9144"),
        (1e-9, "", "1e-09"),
        (1023, "B", "1023 B"),
        (1_101_384, "B", "1.05 MiB"),
        (91.337, "%", "91.34 %"),
        (1, "points", "1.00 points"),
        (12.345, "ms", "12.3 ms"),
        (0.00012, "ms", "0.00012 ms"),
        (123.7, "images/s", "124 images/s"),
        (math.nan, "%", "not a number"),
        (-math.inf, "", "-\N{INFINITY}"),
        (None, "B", "not measured"),
    ],
)
def test_a_quantity_is_short_and_true(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@given(st.floats(1e-6, 1e15))
def test_a_count_is_written_to_three_digits(value: float) -> None:
    number, _, prefix = quantity(value).partition(" ")

    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix] == pytest.approx(value, rel=0.005)


def test_a_spread_says_how_many_digits_mean_something() -> None:
    assert measured(6.3041, "ms", 0.0974) == "6.30 ± 0.10 ms"
    assert measured(12.3456, "ms", 0.0123) == "12.346 ± 0.012 ms"
    assert measured(1234.5, "ms", 21.0) == "1,234 ± 21 ms"
    assert measured(5.0, "ms", 0.0) == measured(5.0, "ms", None) == "5 ms"


def test_a_comparison_is_a_ratio_or_signed_points() -> None:
    times = "\N{MULTIPLICATION SIGN}"
    assert comparison(Row("MACs", "", 40e6, 20e6, "lower")) == f"0.50{times}"
    assert comparison(Row("MACs", "", 1e6, 12_345, "lower")) == f"0.012{times}"
    assert comparison(Row("accuracy", "%", 92.58, 91.34, "higher", "difference")) == "-1.24 points"
    assert comparison(Row("loss", "", 0.25, 0.5, "lower", "difference")) == "+0.2500"
    assert comparison(Row("memory", "B", 1.0, None, "lower")) == "\N{EN DASH}"


def test_only_the_whole_is_a_hundred_per_cent_and_only_nothing_is_none() -> None:
    assert [share(part, 10_000) for part in (0, 1, 5_000, 9_999, 10_000)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]
    assert share(1.3, 1) == "130 %"


@given(st.sets(st.integers(0, 200)))
def test_ranges_name_every_number_once(numbers: set[int]) -> None:
    named: list[int] = []
    for part in ranges(sorted(numbers)).split(", "):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1) if first else []

    assert named == sorted(numbers)
