"""Shapes of results on the meta device, without torch's slow ways to them.

On meta tensors torch runs most operators as Python decompositions, a batch norm as dozens of them. Only the shape and dtype
of the result matter here, so batch norms and element-wise operators get them directly, and any operator gets them once for
each kind of operands. Operators that alias or write their operands always run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.torch.rules.registry import is_pointwise

_BATCH_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"})


class MetaRunner:
    """Runs operators on meta tensors, and remembers the kinds of results."""

    def __init__(self) -> None:
        self._results: dict[Any, Any] = {}
        self._dtypes: dict[Any, torch.dtype] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operator, as far as its shape and dtype go."""
        name = func._schema.name.removeprefix("aten::")
        aliases = any(a.alias_info is not None for a in (*func._schema.arguments, *func._schema.returns))
        if name in _BATCH_NORMS:
            empty = args[0].new_empty(0)
            return torch.empty_like(args[0]), empty, empty.clone()
        if not aliases and is_pointwise(func) and not kwargs and len(func._schema.returns) == 1:
            return self._pointwise(func, args)
        if aliases:
            return func(*args, **kwargs)
        key = (func, *(_kind(leaf) for leaf in pytree.tree_leaves((args, dict(kwargs)))))
        if key not in self._results:
            out = func(*args, **kwargs)
            self._results[key] = pytree.tree_map_only(Tensor, lambda t: _Like(t.shape, t.stride(), t.dtype), out)
            return out
        return pytree.tree_map_only(_Like, _Like.make, self._results[key])

    def _pointwise(self, func: Any, args: tuple[Any, ...]) -> Tensor:
        """Broadcast the shapes, and ask for the dtype with single numbers of the same dtypes."""
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        key = (func, *(_dtype_kind(leaf) for leaf in pytree.tree_leaves(args)))
        if key not in self._dtypes:
            small = pytree.tree_map_only(Tensor, lambda t: t.new_empty((1,) * min(t.ndim, 1)), args)
            self._dtypes[key] = func(*small).dtype
        same = all(tensor.shape == tensors[0].shape for tensor in tensors)
        if same and self._dtypes[key] == tensors[0].dtype:
            return torch.empty_like(tensors[0])
        shape = np.broadcast_shapes(*(tuple(tensor.shape) for tensor in tensors))
        return torch.empty(shape, dtype=self._dtypes[key], device="meta")


class _Like:
    """The kind of a tensor, from which another of its kind is made."""

    __slots__ = ("dtype", "shape", "stride")

    def __init__(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.stride, self.dtype = shape, stride, dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)


def _dtype_kind(leaf: Any) -> Any:
    return (leaf.dtype, leaf.ndim > 0) if isinstance(leaf, Tensor) else (type(leaf), leaf)
