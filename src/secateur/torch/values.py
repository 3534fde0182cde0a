"""Real values of small tensors during a run on the meta device.

Models ask constants and small inputs for their values (is this mask all ones? do the positions restart?). Where a tensor
follows from constants and integer inputs alone, the same operator runs on their real values too, so that such questions have
an answer without running the model on real data.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.torch.metarun import MetaRunner
from secateur.torch.schema import operands, schema_of

LIMIT = 1 << 16
"""Tensors with more elements are not followed."""

_NEEDS_VALUES = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "_local_scalar_dense equal nonzero masked_select unique_consecutive _unique2 unique_dim bincount is_nonzero"
    ).split()
)


class KnownValues:
    """The real values of some of the tensors of a meta run, by identity."""

    def __init__(self) -> None:
        self._real: dict[int, tuple[Tensor, Tensor]] = {}
        self._meta = MetaRunner()

    def learn(self, tensor: Tensor, real: Tensor) -> None:
        """`tensor` stands for `real`, if that is small and holds integers or truth values."""
        if not real.is_meta and not real.is_floating_point() and not real.is_complex() and real.numel() <= LIMIT:
            self._real[id(tensor)] = (tensor, real.detach().cpu().clone())

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator on the meta tensors, and on the real values where all of them are known."""
        schema = schema_of(func)
        known = all(id(operand) in self._real for operand in operands((args, tuple(kwargs.values()))))
        followed = known and not schema.seeded
        if schema.name in _NEEDS_VALUES and known:
            real = self._on_real(func, args, kwargs)
            return pytree.tree_map_only(Tensor, self._stand_in, real)
        out = self._meta.run(func, args, kwargs)
        if not followed:
            self._forget_written(func, args)
        elif _all_small(out):
            self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        real = self._on_real(func, args, kwargs)
        for meta, value in zip(pytree.tree_leaves(out), pytree.tree_leaves(real), strict=True):
            if isinstance(meta, Tensor):
                self._real[id(meta)] = (meta, value)

    def _on_real(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        real: tuple[tuple[Any, ...], dict[str, Any]] = (args, dict(kwargs))
        if operands(real[0]) or operands(real[1].values()):
            real = pytree.tree_map_only(Tensor, lambda tensor: self._real[id(tensor)][1], real)
        if real[1].get("device") is not None:
            real[1]["device"] = torch.device("cpu")
        with torch._C.DisableTorchFunction():
            return func(*real[0], **real[1])

    def _stand_in(self, real: Tensor) -> Tensor:
        meta = torch.empty_like(real, device="meta")
        self._real[id(meta)] = (meta, real)
        return meta

    def _forget_written(self, func: Any, args: tuple[Any, ...]) -> None:
        """A known tensor was written with unknown values: it and all views of its storage are unknown from now on."""
        for value in (args[i] for i in schema_of(func).written if i < len(args)):
            if isinstance(value, Tensor) and id(value) in self._real:
                storage = self._real[id(value)][1].untyped_storage().data_ptr()
                self._real = {k: v for k, v in self._real.items() if v[1].untyped_storage().data_ptr() != storage}


def _all_small(out: Any) -> bool:
    return all(tensor.numel() <= LIMIT for tensor in operands((out,)))
