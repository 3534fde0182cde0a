"""How a number with its unit is written, on the page and in the terminal."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from secateur.report.comparison import Row

NOT_MEASURED = "not measured"
NO_COMPARISON = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def quantity(value: float | None, unit: str = "") -> str:
    """A value with its unit, as short as it can be read without a mistake.

    Args:
        value: The number, in the unit.
        unit: `""` for counts, `"B"` for bytes, `"%"`, or any other text.

    Example:
        >>> quantity(272_474), quantity(1_089_896, "B"), quantity(92.6, "%"), quantity(12.345, "ms")
        ('272 k', '1.04 MiB', '92.60 %', '12.3 ms')
        >>> quantity(None, "ms")
        'not measured'
    """
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        number = "not a number" if math.isnan(value) else "-\N{INFINITY}" if value < 0 else "\N{INFINITY}"
        return f"{number} {unit}".rstrip() if math.isinf(value) else number
    if unit == "B":
        return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))
    if unit in ("%", "points"):
        return f"{value:.2f} {unit}"
    if unit == "" and abs(value) >= 1000:
        return _scaled(value, 1000, ("", " k", " M", " G", " T"))
    if unit == "" and abs(value) < 1:
        return _significant(value, digits=4)  # so that an accuracy of 0.9258 is told from one of 0.9261
    return f"{_significant(value)} {unit}".rstrip()


def measured(value: float | None, unit: str, spread: float | None) -> str:
    """A value with its spread, both to the digits that the spread leaves meaning to.

    Example:
        >>> measured(12.3456, "ms", 0.218)
        '12.3 ± 0.2 ms'
    """
    if value is None or spread is None or not math.isfinite(value) or not math.isfinite(spread) or spread <= 0:
        return quantity(value, unit)
    # One digit of the spread, two where the first is a 1: the rule of the physicists' tables.
    power = math.floor(math.log10(spread))
    decimals = min(max((1 if spread < 2 * 10**power else 0) - power, 0), 6)
    return f"{value:,.{decimals}f} ± {spread:,.{decimals}f} {unit}".rstrip()


def comparison(row: Row) -> str:
    """How the pruned network compares with the dense one: a ratio, or a signed difference.

    Example:
        >>> comparison(Row("accuracy", "%", 92.6, 91.9, "higher", "difference"))
        '-0.70 points'
    """
    change = row.change
    if change is None:
        return NO_COMPARISON
    if row.compare == "ratio":
        return f"{change:.2g}{TIMES}" if 0 < abs(change) < 0.1 else f"{change:.2f}{TIMES}"
    if row.unit == "%" and math.isfinite(change):
        return f"{change:+.2f} points"
    return f"{'+' if change >= 0 else ''}{quantity(change, row.unit)}"


def share(part: int | float, whole: int | float) -> str:
    """A part of a whole in per cent: only the whole is 100 %, and only nothing is 0 %.

    Example:
        >>> share(1, 2), share(2047, 2048), share(0, 5)
        ('50 %', '> 99 %', '0 %')
    """
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    percent = 100 * part / whole
    return "> 99 %" if 99 < percent < 100 else "< 1 %" if percent < 1 else f"{percent:.0f} %"


def ranges(numbers: Iterable[int]) -> str:
    """Ascending integers as text, with runs drawn together.

    Example:
        >>> ranges([0, 3, 4, 5, 9])
        '0, 3-5, 9'
    """
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in _runs(numbers))


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run; within a run, a number less its place in the list is the same."""
    for _, run in groupby(enumerate(numbers), key=lambda placed: placed[1] - placed[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    # 999.95 k would be written 1000 k: what rounds up to the next unit is given in it.
    while power < len(units) - 1 and abs(value) >= base * 0.9995:
        value, power = value / base, power + 1
    return f"{_significant(value)}{units[power]}"


def _significant(value: float, digits: int = 3) -> str:
    """So many digits, more for whole numbers; without an exponent where that can be read."""
    if value == int(value) and abs(value) < 10_000:
        return str(int(value))
    short = f"{value:.{digits}g}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(float(short)))))}f}"
    return short
