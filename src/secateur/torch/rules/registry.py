"""Finds the rule of an operator, and what happens to operators that have none."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.axes import ONE, Dims, Fixed, Reason

logger = logging.getLogger(__name__)

Result = Dims | list[Dims] | None
Rule = Callable[..., Result]

_UNTAGGED = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise floor_divide polar complex real imag"
    ).split()
)
"""Element-wise operators that torch 2.13 does not tag as such."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and what is known of it.

    Attributes:
        function: The rule.
        keeps_zero: Whether positions that are zero in all operands are zero in the result.
        reads: The arguments it reads by name; None if it reads any.
    """

    function: Rule
    keeps_zero: bool
    reads: frozenset[str] | None


RULES: dict[str, Entry] = {}


def rule(*names: str, keeps_zero: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by their names without the overload.

    A rule whose last parameter is `**_` reads no further tensors: others among the arguments are frozen.
    """

    def register(function: Rule) -> Rule:
        parameters = inspect.signature(function).parameters
        reads = frozenset(parameters) if "_" in parameters else None
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = Entry(function, keeps_zero, reads)
        return function

    return register


def is_pointwise(func: OpOverload) -> bool:
    """By torch's own tag; an in-place operator counts as what it does out of place."""
    name = func._schema.name.removeprefix("aten::")
    if torch.Tag.pointwise in func.tags or name.removesuffix("_") in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    functional = getattr(packet, func._overloadname, None)
    return functional is not None and torch.Tag.pointwise in functional.tags


def fixed_dims(tensor: Tensor, reason: Reason) -> Dims:
    """Dims of which nothing can go."""
    return tuple(ONE if n == 1 else Fixed(reason) for n in tensor.shape)
