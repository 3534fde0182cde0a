"""A copy of a model in which every tensor is replaced by another one; the model itself is never touched.

One function serves tracing (tensors become meta tensors), masking (zeros) and compacting (slices). Python's own deep copy keeps
everything else: classes, hooks, modes, shared modules and tied weights, plain attributes.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import ModelError

Convert = Callable[[Tensor], Tensor]


def replicate(model: nn.Module, convert: Convert) -> nn.Module:
    """Deep-copy `model`, with `convert(tensor)` in place of each of its tensors.

    Args:
        model: Any module; it stays as it is.
        convert: Called once for each distinct tensor, so that tied tensors stay tied.

    Returns:
        A module of the same class, in the same mode, with the same hooks and `requires_grad` flags.

    Raises:
        ModelError: Some attribute of the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _converted(tensor, convert)
    try:
        with _ConvertPlainTensors(convert), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, when it copies what an exported graph holds
            _copy_modules(model, memo)
            return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, ValueError, AttributeError, SystemError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}); give the attribute that cannot be copied a __deepcopy__ method"
        ) from error


def _copy_modules(model: nn.Module, memo: dict[int, Any]) -> None:
    """Do for ordinary modules what a deep copy does, without its dozen steps for each of their dozen empty tables of hooks."""
    modules = list(model.modules())
    classes = {cls for cls in set(map(type, modules)) if _is_ordinary(cls)}
    ordinary = [module for module in modules if type(module) in classes]
    for module in ordinary:
        memo[id(module)] = type(module).__new__(type(module))
    for module in ordinary:
        vars(memo[id(module)]).update((name, _copied(value, memo)) for name, value in vars(module).items())


def _is_ordinary(cls: type[nn.Module]) -> bool:
    """Whether a deep copy of a module is a copy of its `__dict__`: it says nothing else about copying or pickling."""
    same = all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in _COPYING)
    restores = cls.__setstate__ in (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)
    return same and restores and not any("__slots__" in vars(base) for base in cls.__mro__)


_COPYING = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__new__")
_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype})
_TABLES = frozenset({dict, OrderedDict})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy`, for what modules keep most of: numbers, tuples of numbers, and tables."""
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value))):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _TABLES and _ATOMS.issuperset(map(type, value)):
        table = memo[id(value)] = kind()
        table.update((key, _copied(item, memo)) for key, item in value.items())
        return table
    return copy.deepcopy(value, memo)


def _converted(tensor: Tensor, convert: Convert) -> Tensor:
    """The replacement, a parameter where the original was one, with its gradient flag."""
    with torch.no_grad():
        replacement = convert(tensor)
    if isinstance(tensor, nn.Parameter) and not isinstance(replacement, nn.Parameter):
        replacement = nn.Parameter(replacement, requires_grad=tensor.requires_grad)
    if tensor.is_leaf and tensor.requires_grad:
        replacement.requires_grad_()
    return replacement


class _ConvertPlainTensors(TorchFunctionMode):
    """Catches deep copies of tensors that a module keeps outside its parameters and buffers."""

    def __init__(self, convert: Convert) -> None:
        super().__init__()
        self.convert = convert

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = _converted(tensor, self.convert)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
