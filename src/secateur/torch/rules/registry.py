"""Finds the rule of an operator, and what happens to operators that have none."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.axes import ONE, Dims, Fixed, Reason
from secateur.torch.recorder import CONSTANT, Recorder

Result = Dims | list[Dims] | None
Rule = Callable[..., Result]

_UNTAGGED = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise floor_divide polar complex real imag"
    ).split()
)
"""Element-wise operators that torch 2.13 does not tag as such."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by their names without the overload."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
        return function

    return register


def apply(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Work out what the results of one operator stand for."""
    from secateur.torch.rules import contraction, creation, lookup, movement, normalisation, pointwise, reduction

    del contraction, creation, lookup, movement, normalisation, reduction
    name = func._schema.name.removeprefix("aten::")
    recorder.begin(name)
    arguments = _bound(func, args, kwargs)
    tensors = list(_tensors(arguments.values()))
    for tensor in tensors:
        recorder.labels.observe(recorder.dims(tensor))
    if name.endswith("_") and name[:-1] in RULES and name not in RULES:
        name = name[:-1]
    if name in RULES:
        result = RULES[name](recorder, out, **arguments)
        zero = recorder.result_zero
        _learn(recorder, out, result, all(map(recorder.zero, tensors)) if zero is None else zero)
    elif is_pointwise(func):
        dims = pointwise.broadcast(recorder, tensors, out)
        _learn(recorder, out, dims, pointwise.keeps_zero(recorder, func, args, kwargs))
    else:
        _unknown(recorder, func, tensors, out)


def is_pointwise(func: OpOverload) -> bool:
    """By torch's own tag; an in-place operator counts as what it does out of place."""
    name = func._schema.name.removeprefix("aten::")
    if torch.Tag.pointwise in func.tags or name.removesuffix("_") in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    functional = getattr(packet, func._overloadname, None)
    return functional is not None and torch.Tag.pointwise in functional.tags


def _bound(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by the operator's own names, with defaults filled in."""
    arguments = func._schema.arguments
    bound = {a.name: a.default_value for a in arguments if a.has_default_value()}
    bound.update(zip((a.name for a in arguments), args, strict=False))
    bound.update(kwargs)
    return {("input" if name == "self" else name): value for name, value in bound.items()}


def _learn(recorder: Recorder, out: Any, result: Result, zero: bool) -> None:
    """Remember the dims of one result or several."""
    if result is None:
        return
    outs = [out] if isinstance(out, Tensor) else list(out)
    results = result if isinstance(result, list) else [result]
    for tensor, dims in zip(outs, results, strict=False):
        if isinstance(tensor, Tensor):
            _learn_one(recorder, tensor, dims, zero)


def _learn_one(recorder: Recorder, tensor: Tensor, dims: Dims, zero: bool) -> None:
    recorder.labels.observe(dims)
    sized = (ONE if n == 1 else CONSTANT if d is ONE else d for n, d in zip(tensor.shape, dims, strict=True))
    recorder.learn(tensor, tuple(sized), zero)


def _unknown(recorder: Recorder, func: OpOverload, tensors: Sequence[Tensor], out: Any) -> None:
    """An operator without a rule: nothing that it touches may be removed."""
    reason = recorder.freeze_all(tensors, f"{func._schema.name} has no rule")
    outs = out if isinstance(out, (tuple, list)) else [out]
    for tensor in outs:
        if isinstance(tensor, Tensor):
            _learn_one(recorder, tensor, fixed_dims(tensor, reason), zero=False)


def fixed_dims(tensor: Tensor, reason: Reason) -> Dims:
    """Dims of which nothing can go."""
    return tuple(ONE if n == 1 else Fixed(reason) for n in tensor.shape)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(_tensors(value))
    return found
