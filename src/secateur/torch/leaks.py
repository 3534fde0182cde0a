"""Tensors without values that a model put somewhere outside itself while it was watched are taken out again."""

import functools
import gc
import logging
import weakref
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)

_Cache = type(functools.lru_cache(int))


class Created:
    """The tensors that were made while a model was watched; whoever has one afterwards keeps it outside the model."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Tensor]] = []

    def add(self, out: Any) -> None:
        """The result of an operator."""
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and value.is_meta:
                self._references.append(weakref.ref(value))

    def recall(self) -> None:
        """Drop those that are still alive from the tables and caches that hold them; these are filled again when needed."""
        if all(reference() is None for reference in self._references):
            return
        gc.collect()
        for reference in self._references:
            if (tensor := reference()) is not None and not _drop(tensor):
                logger.warning(
                    "a tensor %s without values, made while the model was watched, is kept outside the model by its code or its "
                    "hooks; clear what keeps it before you use it",
                    tuple(tensor.shape),
                )
        self._references.clear()


def _drop(value: object) -> bool:
    """Take `value` out of the dictionaries and `functools` caches that hold it, alone or in a tuple."""
    dropped = False
    for holder in gc.get_referrers(value):
        if isinstance(holder, _Cache):
            holder.cache_clear()
            dropped = True
        elif isinstance(holder, dict) and not _is_namespace(holder):
            for key in [key for key, held in holder.items() if held is value]:
                del holder[key]
                dropped = True
        elif type(holder) is tuple:
            dropped |= _drop(holder)
    return dropped


def _is_namespace(holder: dict[Any, Any]) -> bool:
    """Whether a dictionary holds the variables of a module or the attributes of an object."""
    return any(getattr(owner, "__dict__", None) is holder for owner in gc.get_referrers(holder))
