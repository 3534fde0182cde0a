"""Finds the rule of an operator, and what happens to operators that have none."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateur.axes import ONE, Dims, Fixed, Reason

logger = logging.getLogger(__name__)

Result = Dims | list[Dims] | None
Rule = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and what is known of it.

    Attributes:
        function: The rule.
        keeps_zero: Whether positions that are zero in all operands are zero in the result.
        reads: The arguments it reads by name; None if it reads any.
        moves: The results hold the values of its first tensor, at other positions.
        follows: It knows what to do with tensors whose values are places on a dim.
    """

    function: Rule
    keeps_zero: bool
    reads: frozenset[str] | None
    moves: bool
    follows: bool


RULES: dict[str, Entry] = {}


def rule(*names: str, keeps_zero: bool = False, moves: bool = False, follows: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by their names without the overload.

    A rule whose last parameter is `**_` reads no further tensors: others among the arguments are frozen.
    """

    def register(function: Rule) -> Rule:
        parameters = inspect.signature(function).parameters
        reads = frozenset(parameters) if "_" in parameters else None
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = Entry(function, keeps_zero, reads, moves, follows)
        return function

    return register


def movement(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators that move values and compute none: what is zero stays zero, a place stays a place."""
    return rule(*names, keeps_zero=True, moves=True)


def fixed_dims(tensor: Tensor, reason: Reason) -> Dims:
    """Dims of which nothing can go."""
    return tuple(ONE if n == 1 else Fixed(reason) for n in tensor.shape)
