"""Shapes of results on the meta device, without torch's slow ways to them.

On meta tensors torch runs most operators as Python decompositions, a batch norm as dozens of them, `hardswish` in 4 ms. Only
the shape and dtype of the result matter here, so batch norms and element-wise operators get them directly, and any operator
gets them once for each kind of operands. Operators that alias or write their operands always run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.torch.schema import operands, schema_of

_BATCH_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"})

Kind = tuple[torch.Size, tuple[int, ...], torch.dtype]


class MetaRunner:
    """Runs operators on meta tensors, and remembers the kinds of results."""

    def __init__(self) -> None:
        self._results: dict[Any, Kind | tuple[Kind, ...]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operator, as far as its shape and dtype go."""
        schema = schema_of(func)
        if schema.name in _BATCH_NORMS:
            statistic = (torch.Size((0,)), (1,), args[0].dtype)
            return _alike(args[0]), _made(statistic), _made(statistic)
        if schema.pointwise and not kwargs and schema.results == 1:
            if schema.pure:
                return _pointwise(func, args)
            if schema.written == (0,) and _same_shapes(operands(args)):
                return args[0]
        if not schema.pure:
            return func(*args, **kwargs)
        key = (func, _kinds(args), _kinds(kwargs.items()) if kwargs else ())
        known = self._results.get(key)
        if known is None:
            return self._remember(key, func(*args, **kwargs))
        return _made(known) if isinstance(known[0], torch.Size) else tuple(map(_made, known))

    def _remember(self, key: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            self._results[key] = (out.shape, out.stride(), out.dtype)
        elif isinstance(out, tuple) and out and all(isinstance(tensor, Tensor) for tensor in out):
            self._results[key] = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in out)
        return out


def _pointwise(func: Any, args: tuple[Any, ...]) -> Tensor:
    """Broadcast the shapes, and ask for the dtype with single numbers of the same dtypes."""
    tensors = operands(args)
    key = (func, _dtype_kinds(args))
    dtype = _DTYPES.get(key)
    if dtype is None:
        dtype = _DTYPES[key] = func(*_single(args)).dtype
    if dtype == tensors[0].dtype and _same_shapes(tensors):
        return _alike(tensors[0])
    shape = np.broadcast_shapes(*(tuple(tensor.shape) for tensor in tensors))
    return torch.empty(shape, dtype=dtype, device="meta")


_DTYPES: dict[Any, torch.dtype] = {}
"""The dtype of element-wise operators' results, by the dtypes of their operands: the same in every run."""


def _same_shapes(tensors: Sequence[Tensor]) -> bool:
    """All have the shape of the first, or are single numbers."""
    return all(tensor.shape == tensors[0].shape or not tensor.ndim for tensor in tensors)


def _alike(tensor: Tensor) -> Tensor:
    """As `torch.empty_like`, which is a Python program on the meta device."""
    if tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor)


def _made(kind: Kind | Any) -> Tensor:
    """A tensor of this kind."""
    shape, stride, dtype = kind
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _single(args: Any) -> Any:
    """The same arguments, with a single number in place of each tensor."""
    return [
        value.new_empty((1,) * min(value.ndim, 1))
        if isinstance(value, Tensor)
        else _single(value)
        if isinstance(value, (tuple, list))
        else value
        for value in args
    ]


def _kinds(values: Any) -> tuple[Any, ...]:
    """Nested arguments as something that is equal where their kinds are."""
    return tuple(
        [
            (value.shape, value.stride(), value.dtype)
            if isinstance(value, Tensor)
            else _kinds(value)
            if isinstance(value, (tuple, list))
            else (type(value), value)
            for value in values
        ]
    )


def _dtype_kinds(values: Any) -> tuple[Any, ...]:
    return tuple(
        [
            (value.dtype, value.ndim > 0)
            if isinstance(value, Tensor)
            else _dtype_kinds(value)
            if isinstance(value, (tuple, list))
            else (type(value), value)
            for value in values
        ]
    )
