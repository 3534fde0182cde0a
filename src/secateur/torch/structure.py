"""Finds the tensors in whatever a model takes and returns: nested containers, dataclasses, objects of any class."""

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a value, in a fixed order; objects that are no containers are searched by their attributes.

    Args:
        value: Anything.

    Example:
        >>> import types, torch
        >>> len(tensors_in({"a": [torch.zeros(1)], "b": types.SimpleNamespace(c=(torch.zeros(2), 3))}))
        2
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen and not isinstance(leaf, (type, nn.Module)):
            seen.add(id(leaf))
            for attribute in _attributes(leaf):
                _collect(attribute, found, seen)


def _attributes(value: Any) -> list[Any]:
    """What an object keeps, in its `__dict__` and its slots."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    slotted = [getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *slotted]
