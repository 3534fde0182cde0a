"""What must hold afterwards: which share of the dense network's cost may stay."""

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from numbers import Real

from secateur.axes import Cost
from secateur.errors import BudgetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The share of each cost that may stay; where several are given, all of them hold.

    Shares are read as they are written: 0.3 of 10 is 3, although the float 0.3 is a little less than three tenths. A share
    that no decimal number is, such as 8 of 21, is a `fractions.Fraction`.

    Args:
        params: The share of the parameters (tied ones count once), in (0, 1]; None = no limit.
        macs: The share of the multiply-adds of one run on the example inputs, in (0, 1]; None = no limit.
        bytes: The share of the bytes of parameters and buffers, in (0, 1]; None = no limit.

    Raises:
        BudgetError: No share is given, or one is no number in (0, 1].

    Example:
        >>> from secateur.axes import Cost
        >>> Budget(macs=0.3, params=0.5).limits(Cost(parameters=7, macs=10, bytes=28))
        Cost(parameters=3, macs=3, bytes=28)
    """

    params: float | Fraction | None = None
    macs: float | Fraction | None = None
    bytes: float | Fraction | None = None

    def __post_init__(self) -> None:
        if self.params is None and self.macs is None and self.bytes is None:
            raise BudgetError("the budget limits nothing; give params, macs or bytes, for example Budget(macs=0.5)")
        for name, share in (("params", self.params), ("macs", self.macs), ("bytes", self.bytes)):
            if share is not None:
                exact_share(f"Budget({name}=...)", share)

    def __str__(self) -> str:
        shares = (("params", self.params), ("macs", self.macs), ("bytes", self.bytes))
        return f"Budget({', '.join(f'{name}={share}' for name, share in shares if share is not None)})"

    def limits(self, dense: Cost) -> Cost:
        """The largest costs that this budget allows.

        Args:
            dense: The cost of the whole network.

        Returns:
            Each limited cost times its share, rounded down; the dense cost where there is no limit.
        """
        return Cost(
            parameters=_limit("params", self.params, dense.parameters),
            macs=_limit("macs", self.macs, dense.macs),
            bytes=_limit("bytes", self.bytes, dense.bytes),
        )


def fits(cost: Cost, limits: Cost) -> bool:
    """Whether no cost is above its limit."""
    return cost.parameters <= limits.parameters and cost.macs <= limits.macs and cost.bytes <= limits.bytes


def exact_share(name: str, share: object, *, zero: bool = False) -> Fraction:
    """The share as it was written: the float 0.3 gives 3/10.

    Args:
        name: What to call it in an error.
        share: A number in (0, 1].
        zero: Whether 0 is allowed too.

    Raises:
        BudgetError: It is no such number.
    """
    interval = "[0, 1]" if zero else "(0, 1]"
    wanted = f"{name} is a share of the dense network, a number in {interval}; got {share!r}"
    if isinstance(share, bool) or not isinstance(share, Real):
        raise BudgetError(f"{wanted}, a {type(share).__name__}")
    if not isfinite(share):
        raise BudgetError(wanted)
    exact = Fraction(str(share))
    if not 0 <= exact <= 1 or (exact == 0 and not zero):
        absolute = f"; for a limit of {share} give Fraction({share}, the same cost of network.cost())"
        raise BudgetError(f"{wanted}{'' if exact <= 1 else '; for 50 % write 0.5' if exact <= 100 else absolute}")
    return exact


def _limit(name: str, share: float | Fraction | None, dense: int) -> int:
    return dense if share is None else int(exact_share(name, share) * dense)
