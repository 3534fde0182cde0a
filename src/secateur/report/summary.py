"""What a run comes to, in sentences."""

from collections.abc import Iterable, Sequence

from secateur.report.comparison import Goal, Row
from secateur.report.quantity import comparison, quantity, share
from secateur.report.record import AxisRecord, Proof, RunRecord

TAIL = "p99 latency"
"""Left to the table: a sentence names one latency."""


def summary(record: RunRecord) -> tuple[str, ...]:
    """The result in a few sentences, made of what was recorded and nothing else.

    Example:
        >>> row = Row("MACs", "", 41e6, 20.5e6, better="lower")
        >>> summary(RunRecord("A run", "resnet20", "2025-01-01", rows=(row,)))
        ('The pruned network has 50 % of the MACs of the dense one.',)
    """
    ratios = [
        row
        for row in record.rows
        if row.compare == "ratio" and row.change is not None and row.name != TAIL and row.verdict != "unclear"
    ]
    differences = [row for row in record.rows if row.compare == "difference" and row.change is not None]
    sentences = (_ratios(ratios), *(_difference(row) for row in differences), _units(record.axes))
    return tuple(sentence for sentence in sentences if sentence)


def goals_met(goals: Sequence[Goal]) -> tuple[bool, str] | None:
    """Whether what was asked for holds, and the words for it; None where nothing was asked or measured."""
    measured = [goal for goal in goals if goal.met is not None]
    if not measured:
        return None
    missed = sum(not goal.met for goal in measured)
    unmeasured = len(goals) - len(measured)
    words = f"{missed} of {_count(len(goals), 'goal')} missed" if missed else _all(len(measured), "goal", "met")
    return missed == 0, words + (f", {unmeasured} not measured" if unmeasured else "")


def proofs_hold(proofs: Sequence[Proof]) -> tuple[bool, str] | None:
    """Whether every proof holds, and the words for it; None where none was run."""
    if not proofs:
        return None
    failed = sum(not proof.passed for proof in proofs)
    words = f"{failed} of {_count(len(proofs), 'proof')} failed" if failed else _all(len(proofs), "proof", "held")
    return failed == 0, words


def _ratios(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    return f"The pruned network has {_list(f'{share(row.change or 0, 1)} of the {row.name}' for row in rows)} of the dense one."


def _difference(row: Row) -> str:
    name = row.name[:1].upper() + row.name[1:]
    if row.verdict == "same":
        return f"{name} stays at {quantity(row.dense, row.unit)}."
    return f"{name} goes from {quantity(row.dense, row.unit)} to {quantity(row.pruned, row.unit)} ({comparison(row)})."


def _units(axes: Sequence[AxisRecord]) -> str:
    if not axes:
        return ""
    units, kept = sum(axis.size for axis in axes), sum(len(axis.kept) for axis in axes)
    cut = sum(len(axis.kept) < axis.size for axis in axes)
    if not cut:
        return f"All {units:,} units of {_count(len(axes), 'axis', 'axes')} stay."
    return (
        f"{units - kept:,} of {units:,} units ({share(units - kept, units)}) go, "
        f"from {f'{cut:,} of ' if cut < len(axes) else 'all ' if cut > 1 else ''}{_count(len(axes), 'axis', 'axes')}."
    )


def _list(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _all(number: int, noun: str, verb: str) -> str:
    return {1: f"{noun} {verb}", 2: f"both {noun}s {verb}"}.get(number, f"all {number} {noun}s {verb}")
