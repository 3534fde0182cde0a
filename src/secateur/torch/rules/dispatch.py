"""Applies the rule of an operator as it passes; an operator without a rule freezes what it touches."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.axes import ONE, Dims
from secateur.torch.recorder import Recorder
from secateur.torch.rules.pointwise import at_zero, broadcast
from secateur.torch.rules.registry import RULES, Entry, Result, fixed_dims
from secateur.torch.schema import bound, operands, schema_of

logger = logging.getLogger(__name__)

_COMPARES = frozenset({"eq", "ne"})
_PASSES_ON = frozenset(
    f"{name}{suffix}"
    for name in (
        *("slice", "select", "narrow", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"),
        *("t", "transpose", "permute", "unsqueeze", "squeeze", "detach", "alias"),
    )
    for suffix in ("", "_copy")
)
"""Operators that hand positions on without reading them: what they leave behind has met nobody, and may be a row of a table that
only longer inputs reach."""


def apply(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Work out what the results of one operator stand for."""
    schema = schema_of(func)
    name = schema.name
    recorder.begin(name)
    arguments = bound(func, args, kwargs)
    tensors, contractions = operands(arguments.values()), len(recorder.run.contractions)
    for tensor in tensors:
        recorder.met(tensor)
        _meet(recorder, recorder.dims(tensor))
    entry = RULES.get(name) or RULES.get(name.removesuffix("_"))
    try:
        _read_places(recorder, entry, tensors, arguments.get("other"), out)
        if entry is not None:
            _by_rule(recorder, entry, arguments, tensors, out)
        elif schema.pointwise:
            _pointwise(recorder, tensors, out)
            recorder.result_zero, finite = at_zero(recorder, func, args, kwargs)
            _set_zero(recorder, out)
            for dim in recorder.dims(operands([out])[0]) if not finite else ():
                recorder.sum_over(dim, exact=False)
        else:
            _unknown(recorder, f"{func._schema.name} has no rule", tensors, out)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        logger.debug("the rule of %s failed", func._schema.name, exc_info=True)
        _unknown(recorder, f"{func._schema.name} is used in a way its rule does not know ({error})", tensors, out)
    _remember_memory(recorder, func, arguments, out)
    recorder.roles.ran(operands([out]), [tensor for tensor in tensors if not recorder.points(tensor)])
    written = operands(arguments.get(schema.arguments[i]) for i in schema.written)
    moves = entry is not None and entry.moves
    recorder.entries.ran(name.strip("_"), arguments, operands([out]), written, moves=moves, seeded=schema.seeded)
    if recorder.entries.running:
        made = range(contractions, len(recorder.run.contractions))
        recorder.run.runs_for.update(dict.fromkeys(made, recorder.entries.running))


def _by_rule(recorder: Recorder, entry: Entry, arguments: dict[str, Any], tensors: Sequence[Tensor], out: Any) -> None:
    """Apply a rule, and freeze the tensors that it does not read."""
    if entry.reads is not None:
        unread = operands(value for name, value in arguments.items() if name not in entry.reads)
        recorder.freeze_all(unread, f"an argument of {recorder.operator} that its rule does not read")
    result = entry.function(recorder, out, **arguments)
    if entry.moves and tensors:
        results = operands([out])
        if any(result.dtype is torch.bool for result in results):
            recorder.used(tensors[0])
        recorder.moved(tensors[0], results)
    if recorder.result_zero is None:
        recorder.result_zero = entry.keeps_zero and bool(tensors) and all(map(recorder.zero, tensors))
    _learn(recorder, out, result)


def _read_places(recorder: Recorder, entry: Entry | None, tensors: Sequence[Tensor], other: Any, out: Any) -> None:
    """Values that are places on a dim may be moved, compared, or handed to a rule that follows them; no more."""
    if entry is not None and entry.follows:
        return
    if recorder.operator in _COMPARES and len(tensors) == 2:
        left, right = map(recorder.pointee, tensors)
        if left is not None and right is not None:
            recorder.labels.tie(left, right, recorder.reason("places on one axis"))
            return
    dim = recorder.pointee(tensors[0]) if recorder.operator == "eq" and len(tensors) == 1 else None
    if dim is not None and type(other) is int and 0 <= other < dim.shape[1]:
        recorder.entries.choose(out, dim, other, recorder.reason(f"compared with the place {other}"))
        return
    if not recorder.checks_places:
        recorder.used(*tensors[entry is not None and entry.moves :])


def _pointwise(recorder: Recorder, tensors: Sequence[Tensor], out: Any) -> None:
    """Element-wise operators may have several results; those of another shape are scratch."""
    outs = [out] if isinstance(out, Tensor) else [t for t in out if isinstance(t, Tensor)]
    dims = broadcast(recorder, tensors, outs[0])
    recorder.roles.pointwise(recorder.operator, tensors, dims)
    recorder.result_zero = False
    fixed = recorder.reason("scratch of an operator")
    _learn(recorder, outs, [dims if t.shape == outs[0].shape else fixed_dims(t, fixed) for t in outs])


def _learn(recorder: Recorder, out: Any, result: Result) -> None:
    """Remember the dims of one result or several."""
    if result is None:
        return
    outs = [out] if isinstance(out, Tensor) else list(out)
    results = result if isinstance(result, list) else [result]
    for tensor, dims in zip(outs, results, strict=False):
        if isinstance(tensor, Tensor):
            _meet(recorder, dims)
            sized = (
                recorder.constant((n,))[0] if n == 1 or d is ONE else d for n, d in zip(tensor.shape, dims, strict=True)
            )
            recorder.learn(tensor, tuple(sized), bool(recorder.result_zero))


def _meet(recorder: Recorder, dims: Dims) -> None:
    if recorder.operator not in _PASSES_ON:
        recorder.labels.observe(dims)


def _set_zero(recorder: Recorder, out: Any) -> None:
    for tensor in [out] if isinstance(out, Tensor) else out:
        if isinstance(tensor, Tensor):
            recorder.learn(tensor, recorder.dims(tensor), bool(recorder.result_zero))


def _unknown(recorder: Recorder, text: str, tensors: Sequence[Tensor], out: Any) -> None:
    """Nothing that this operator touches may be removed."""
    reason = recorder.freeze_all(tensors, text)
    recorder.result_zero = False
    for tensor in operands([out]):
        recorder.learn(tensor, fixed_dims(tensor, reason), zero=False)


def _remember_memory(recorder: Recorder, func: OpOverload, arguments: dict[str, Any], out: Any) -> None:
    """Which results lie in the memory of an operand, and which memory was written."""
    schema = schema_of(func)
    for i in schema.written:
        value = arguments.get(schema.arguments[i])
        if isinstance(value, Tensor) and not recorder.result_zero:
            recorder.written(value)
    for i in schema.shared:
        value = arguments.get(schema.arguments[i])
        if isinstance(value, Tensor):
            for tensor in operands([out]):
                recorder.shares(tensor, value)
