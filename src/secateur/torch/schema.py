"""What the schema of an ATen operator says, read once: torch builds those objects anew whenever it is asked."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_UNTAGGED = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise floor_divide polar complex real imag"
    ).split()
)
"""Element-wise operators that torch 2.13 does not tag as such."""

_NUMBERS = {
    "convolution": frozenset({"stride", "padding", "dilation", "output_padding"}),
    "embedding": frozenset({"padding_idx"}),
    "roll": frozenset({"shifts"}),
    "select": frozenset({"index"}),
    "tril": frozenset({"diagonal"}),
    "triu": frozenset({"diagonal"}),
    "unfold": frozenset({"size", "step"}),
}
"""Arguments that may be symbolic in torch, and are no sizes."""

_COUNTS = {
    "arange": frozenset({"end"}),
    "histc": frozenset({"bins", "max"}),
    "native_group_norm": frozenset({"group"}),
}
"""Arguments that may not be symbolic, and are how many of something there are."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema of an operator.

    Attributes:
        name: Its name, without namespace and overload.
        arguments: The names of its arguments; `input` where torch says `self`.
        defaults: The arguments that have a default, with it.
        written: The places of the arguments that it writes to.
        shared: The places of the arguments in whose memory a result may lie.
        results: How many results it has.
        pointwise: It works element by element; an in-place operator counts as what it does out of place.
        seeded: Its result is random.
        sizes: The names of the arguments that are sizes.
    """

    name: str
    arguments: tuple[str, ...]
    defaults: dict[str, Any]
    written: tuple[int, ...]
    shared: tuple[int, ...]
    results: int
    pointwise: bool
    seeded: bool
    sizes: frozenset[str]

    @property
    def pure(self) -> bool:
        """It writes nothing, and its results lie in memory of their own."""
        return not self.written and not self.shared


@cache
def schema_of(func: OpOverload) -> Schema:
    """The schema of an operator."""
    arguments = func._schema.arguments
    names = tuple("input" if a.name == "self" else a.name for a in arguments)
    infos = [(i, a.alias_info) for i, a in enumerate(arguments) if a.alias_info is not None]
    return Schema(
        name=func._schema.name.removeprefix("aten::"),
        arguments=names,
        defaults={name: a.default_value for name, a in zip(names, arguments, strict=True) if a.has_default_value()},
        written=tuple(i for i, info in infos if info.is_write),
        shared=tuple(i for i, info in infos if not info.is_write),
        results=len(func._schema.returns),
        pointwise=_is_pointwise(func),
        seeded=torch.Tag.nondeterministic_seeded in func.tags,
        sizes=_sizes_of(func),
    )


def _sizes_of(func: OpOverload) -> frozenset[str]:
    """Torch lets the arguments be symbolic that are sizes, but for a few."""
    name = func._schema.name.removeprefix("aten::")
    symbolic = frozenset(re.findall(r"SymInt\S* (\w+)", str(func._schema)))
    return (symbolic - _NUMBERS.get(name, frozenset())) | _COUNTS.get(name, frozenset())


def bound(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by the operator's own names, with defaults filled in."""
    schema = schema_of(func)
    return {**schema.defaults, **dict(zip(schema.arguments, args, strict=False)), **kwargs}


def _is_pointwise(func: OpOverload) -> bool:
    """By torch's own tag."""
    name = func._schema.name.removeprefix("aten::")
    if torch.Tag.pointwise in func.tags or name.removesuffix("_") in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    functional = getattr(packet, func._overloadname, None)
    return functional is not None and torch.Tag.pointwise in functional.tags


def operands(values: Iterable[Any]) -> list[Tensor]:
    """The tensors in an operator's arguments or results, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(operands(value))
    return found
