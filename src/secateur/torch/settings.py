"""The integers that a module keeps: in attributes of its own, and in settings that it holds.

Settings are objects of plain data and nothing else: a dict, a named tuple, a dataclass, a namespace, the configuration of a
library. Many modules may hold one and the same; where a number in it becomes another one, the module gets a copy of its own.
"""

import copy
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import Enum
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Convert = Callable[[str, int | None, int], int]
"""From the name of an integer in its module, such as `config.width` or `sizes['width']`, its index where it is an element of a
tuple or list, and the integer: what takes its place."""

Copies = dict[Any, tuple[object, object]]
"""By the settings and what changed in them: the original and its copy."""

OURS = "secateur_"
"""What we ourselves note in a model begins so: it is nobody's settings."""

_Place = tuple[str, nn.Module, str]

_LARGEST = 100
"""A dict with more entries is a table of labels or tokens: nobody's settings."""


def convert_integers(
    module: nn.Module, convert: Convert, copies: Copies | None = None, skip: Set[str] = frozenset()
) -> None:
    """Replace the integers that a module keeps; settings in which one changes are replaced by a copy.

    Args:
        module: The module; those inside it stay as they are.
        convert: Gives the new integers; one that it gives back stays.
        copies: Where given, modules that change the same settings alike get the same copy, which is remembered here.
        skip: Names of attributes that stay as they are.
    """
    for name, value in _kept(module):
        if name not in skip:
            converted = _converted(value, name, convert, copies)
            if converted is not value:
                vars(module)[name] = converted


def integers_of(module: nn.Module) -> dict[tuple[str, int | None], int]:
    """The integers that a module keeps, by name and index."""
    found: dict[tuple[str, int | None], int] = {}

    def note(name: str, index: int | None, value: int) -> int:
        found[name, index] = value
        return value

    convert_integers(module, note)
    return found


class SettingsWrittenError(Exception):
    """A run wrote to what looked like settings.

    Attributes:
        places: Where it is held: by the path of a module, the names of its attributes.
    """

    def __init__(self, places: Mapping[str, Set[str]]) -> None:
        super().__init__()
        self.places = places


class SharedSettings:
    """Watches, while a model runs, the settings that several modules share; each of them may have a copy of its own by then.

    Args:
        model: The model, while its modules still share them.
        state: What is not watched.

    Raises:
        SettingsWrittenError: On leaving the context: the run wrote to some. They are state, and modules talk through it.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Set[str]]) -> None:
        holders: dict[int, tuple[object, list[_Place]]] = {}
        for path, module in model.named_modules():
            for name, value in _kept(module):
                if not isinstance(value, (int, np.generic, tuple)) and name not in state.get(path, ()):
                    holders.setdefault(id(value), (value, []))[1].append((path, module, name))
        self._holders = [(value, places) for value, places in holders.values() if len(places) > 1]
        self._shared: list[list[_Place]] = []
        self._before: list[list[list[object]]] = []

    def __enter__(self) -> None:
        self._shared = [
            places
            for value, places in self._holders
            if any(vars(module)[name] is not value for _, module, name in places)
        ]
        self._before = self._content()

    def __exit__(self, *error: object) -> None:
        written: dict[str, set[str]] = {}
        for places, before, now in zip(self._shared, self._before, self._content(), strict=True):
            if not all(map(_same, before, now)):
                for path, _module, name in places:
                    written.setdefault(path, set()).add(name)
        if written:
            raise SettingsWrittenError(written)

    def _content(self) -> list[list[list[object]]]:
        return [[list(_leaves(vars(module).get(name))) for _, module, name in places] for places in self._shared]


def _same(before: Sequence[object], now: Sequence[object]) -> bool:
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _kept(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes that are, or hold, integers and other plain data."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if type(value) not in _ATOMS and name not in _TABLES and not name.startswith(OURS) and _is_plain(value)
    ]


_ATOMS: frozenset[type] = frozenset({bool, str, float, complex, type(None), torch.dtype, torch.device, torch.Size})
_LEAVES: tuple[type, ...] = (
    *_ATOMS,
    int,
    bytes,
    np.generic,
    Enum,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    partial,
)
_TABLES = frozenset(vars(nn.Module()))
"""What torch itself keeps in every module."""


def _is_plain(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether a value is data through and through: no tensors, no modules, no cycles, nothing that minds being copied."""
    if isinstance(value, _LEAVES):
        return True
    if id(value) in inside or isinstance(value, (Tensor, nn.Module, types.ModuleType)):
        return False
    inside = (*inside, id(value))
    if type(value) in (tuple, list, set, frozenset):
        return all(_is_plain(item, inside) for item in value)
    parts = _parts(value)
    return parts is not None and all(_is_plain(item, inside) for item in parts.values())


class _Item(tuple[Any]):
    """The key of a part that is found by `settings[key]`; a part that is an attribute has its name for a key."""

    def __str__(self) -> str:
        return f"[{self[0]!r}]"


def _parts(value: Any) -> dict[str | _Item, Any] | None:
    """What settings are made of; None for what cannot be settings."""
    kind = type(value)
    if isinstance(value, (tuple, list, set, frozenset)):
        return value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else None
    if kind.__module__.partition(".")[0] == "torch" or hasattr(kind, "__del__"):
        return None
    slots = [name for name in _slots(kind.__mro__) if hasattr(value, name)]
    if not (slots or hasattr(value, "__dict__") or isinstance(value, dict)):
        return None
    parts: dict[str | _Item, Any] = {name: getattr(value, name) for name in slots}
    parts.update(getattr(value, "__dict__", {}))
    if isinstance(value, dict) and len(value) <= _LARGEST:
        parts.update((_Item((key,)), item) for key, item in dict.items(value))
    return parts


@cache
def _slots(classes: tuple[type, ...]) -> list[str]:
    found = [vars(base).get("__slots__", ()) for base in classes]
    names = [name for slots in found for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if not name.startswith("__")]


def _converted(value: Any, name: str, convert: Convert, copies: Copies | None) -> Any:
    """The value with its integers converted; the value itself where none becomes another."""
    if _is_kept_integer(value):
        return convert(name, None, value)
    if type(value) in (tuple, list):
        flat = all(map(_is_kept_integer, value))
        items = [
            convert(name, i, item) if flat else _converted(item, f"{name}[{i}]", convert, copies)
            for i, item in enumerate(value)
        ]
        return value if _same(value, items) else type(value)(items)
    if isinstance(value, _LEAVES) or (parts := _parts(value)) is None:
        return value
    changes = {}
    for key, part in parts.items():
        if type(part) not in _ATOMS:
            place = f"{name}{key}" if isinstance(key, _Item) else f"{name}.{key}"
            converted = _converted(part, place, convert, copies)
            if converted is not part:
                changes[key] = converted
    if not changes:
        return value
    if copies is None:
        return _copied(value, changes)
    alike = (id(value), *((key, part if isinstance(part, int) else id(part)) for key, part in changes.items()))
    return copies.setdefault(alike, (value, _copied(value, changes)))[1]


def _copied(value: Any, changes: Mapping[str | _Item, Any]) -> Any:
    """A shallow copy with other parts, past whatever the class does when its attributes are set."""
    if isinstance(value, tuple):
        return value._replace(**{str(name): part for name, part in changes.items()})  # type: ignore[attr-defined]
    made = copy.copy(value)
    if made is value:
        return value
    for key, part in changes.items():
        if isinstance(key, _Item):
            dict.__setitem__(made, key[0], part)
        elif key in getattr(made, "__dict__", ()):
            vars(made)[key] = part
        else:
            object.__setattr__(made, key, part)
    return made


def _leaves(value: Any) -> Iterator[object]:
    """Everything in settings, by identity, to see whether it is still the same."""
    if type(value) is list:
        yield from value
    elif not isinstance(value, _LEAVES):
        for key, part in (_parts(value) or {}).items():
            yield key[0] if isinstance(key, _Item) else key
            yield part
            yield from _leaves(part)


def _is_kept_integer(value: object) -> bool:
    return type(value) is int or isinstance(value, np.integer)
