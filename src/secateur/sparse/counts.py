"""Whole numbers out of shares: how much goes in all, and from where."""

from collections.abc import Sequence
from fractions import Fraction

from secateur.allocate.budget import exact_share
from secateur.errors import BudgetError


def count_of(sparsity: float | Fraction, total: int) -> int:
    """How many of `total` go, to the nearest; the float is read as it is written, so that 0.3 of 10 is 3.

    Raises:
        BudgetError: The sparsity is no number in [0, 1).

    Example:
        >>> count_of(0.3, 10), count_of(0.5, 5)
        (3, 3)
    """
    return int(share_of(sparsity) * total + Fraction(1, 2))


def share_of(sparsity: float | Fraction) -> Fraction:
    """A sparsity as the fraction that it is written as.

    Raises:
        BudgetError: It is no number in [0, 1).
    """
    wanted = f"a sparsity is the share that goes, at least 0 and below 1, such as 0.5; got {sparsity!r}"
    try:
        share = exact_share("sparsity", sparsity, zero=True)
    except BudgetError as error:
        raise BudgetError(wanted) from error
    if share == 1:
        raise BudgetError(wanted)
    return share


def apportion(total: int, weights: Sequence[int | Fraction], most: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to weights, by largest remainder, none above its most; ties go to the first.

    Args:
        total: What to divide, at most the sum of `most`.
        weights: Not negative.
        most: How much each can take.

    Returns:
        Whole numbers whose sum is `total`.

    Raises:
        BudgetError: There is not so much to take.

    Example:
        >>> apportion(10, [1, 1, 2], [9, 2, 9]), apportion(3, [1, 1], [2, 2])
        ([3, 2, 5], [2, 1])
    """
    if total > sum(most):
        raise BudgetError(f"{total} are to go, of {sum(most)} that can; ask for less")
    parts, left, open_ = [0] * len(most), total, [i for i, n in enumerate(most) if n]
    while left:
        whole = sum(Fraction(weights[i]) for i in open_)
        shares = {i: Fraction(weights[i]) * left / whole if whole else Fraction(left, len(open_)) for i in open_}
        full = [i for i in open_ if parts[i] + shares[i] >= most[i]]
        if full:
            for i in full:
                left -= most[i] - parts[i]
                parts[i] = most[i]
            open_ = [i for i in open_ if i not in full]
            continue
        for i in open_:
            parts[i] = int(shares[i])
        rest = left - sum(parts[i] for i in open_)
        for i in sorted(open_, key=lambda i: (int(shares[i]) - shares[i], i))[:rest]:
            parts[i] += 1
        left = 0
    return parts
