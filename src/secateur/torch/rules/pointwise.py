"""Element-wise operators: the operands stand for the same units, position by position, under broadcasting."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.axes import ONE, Dim, Dims
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import rule

_ARBITRARY = tuple(product((1.37, -2.61, 0.0), (True, False)))
"""What operands that carry no zeros may hold: a number, and a truth value where they are masks."""


def broadcast(recorder: Recorder, tensors: Sequence[Tensor], out: Tensor) -> Dims:
    """Tie the operands' dims, aligned at the last one; a dim of size 1 broadcasts."""
    dims: list[Dim] = [ONE] * out.ndim
    for tensor in tensors:
        for offset, dim in enumerate(reversed(recorder.dims(tensor)), start=1):
            if dim is ONE or tensor.shape[-offset] == 1:
                continue
            here = out.ndim - offset
            dims[here] = dim if dims[here] is ONE else recorder.labels.tie(dims[here], dim, recorder.reason("tied"))
    return tuple(dims)


@rule("glu", keeps_zero=True)
def gated(recorder: Recorder, out: Tensor, input: Tensor, dim: int = -1, **_: Any) -> Dims:
    """The first half times the sigmoid of the second."""
    dims, half = list(recorder.dims(input)), out.shape[dim]
    whole = dims[dim]
    alone = recorder.reason("half of two positions")
    first, second = (recorder.labels.take(whole, np.arange(half) + start, alone) for start in (0, half))
    dims[dim] = recorder.labels.tie(first, second, recorder.reason("tied"))
    return tuple(dims)


class KnowsZeros(Protocol):
    """Knows which tensors carry zeros."""

    def zero(self, tensor: Tensor) -> bool:
        """Whether a tensor does."""
        ...


def at_zero(recorder: KnowsZeros, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, bool]:
    """What an operator makes of positions that are zero in the operands that carry zeros, whatever the others hold.

    Returns:
        Whether the result is always zero, and whether it is always finite: a masked model cannot divide by what is masked.
    """
    key = tuple(_scalar_key(recorder, value) for value in (*args, *kwargs.values()))
    try:
        return _at_zero(func, key, tuple(kwargs))
    except TypeError:
        return False, True


def _scalar_key(recorder: KnowsZeros, value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", recorder.zero(value), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_scalar_key(recorder, item) for item in value)
    return value


@lru_cache(maxsize=4096)
def _at_zero(func: OpOverload, key: tuple[Any, ...], names: tuple[str, ...]) -> tuple[bool, bool]:
    """Run the operator on single numbers: 0 for operands that carry zeros, several values for the others."""
    try:
        results = [_on_numbers(func, key, names, 0.0, number, truth) for number, truth in _ARBITRARY]
        zero = not any(bool(part.ne(0).any()) for parts in results for part in parts)
        finite = _all_finite(results[0]) or not _all_finite(_on_numbers(func, key, names, 1.0, *_ARBITRARY[0]))
    except (RuntimeError, NotImplementedError, ValueError):
        return False, True
    return zero, finite


def _on_numbers(
    func: OpOverload, key: tuple[Any, ...], names: tuple[str, ...], carried: float, number: float, truth: bool
) -> list[Tensor]:
    """The results on `carried` in place of operands that carry zeros, and `number` or `truth` in place of the others."""
    values = [_scalar(item, carried, number, truth) for item in key]
    count = len(values) - len(names)
    with torch._C.DisableTorchFunction():
        result = func(*values[:count], **dict(zip(names, values[count:], strict=True)))
    return [result] if isinstance(result, Tensor) else list(result)


def _all_finite(results: Sequence[Tensor]) -> bool:
    return all(bool(part.isfinite().all()) for part in results)


def _scalar(item: Any, carried: float, number: float, truth: bool) -> Any:
    if isinstance(item, tuple) and item and item[0] == "tensor":
        arbitrary = truth if item[2] is torch.bool else number
        return torch.tensor(carried if item[1] else arbitrary, dtype=torch.float32).to(item[2])
    return item
