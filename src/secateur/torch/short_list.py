"""A list of modules without some of its entries: those that stay keep their names, and move up."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn


class ShortList(nn.ModuleList):
    """A module list whose entries are counted by place: entry 1 may have the name `experts.3`, as it had in the dense model."""

    def __getitem__(self, place: Any) -> Any:
        """The entry at a place, or for a slice a list of several."""
        entries = list(self._modules.values())[place]
        return nn.ModuleList(entries) if isinstance(place, slice) else entries


def without_entries(model: nn.Module, gone: Collection[str]) -> None:
    """Take modules out of their lists, in place."""
    for path, name in sorted(path.rpartition(".")[::2] for path in gone):
        holder = model.get_submodule(path)
        assert isinstance(holder, nn.ModuleList)
        delattr(holder, name)
        holder.__class__ = _short(type(holder))


def reorder(model: nn.Module, places: Iterable[tuple[str, str]]) -> None:
    """Put modules of lists where others of the same list stand, in place: pairs of paths, of what comes and of where to."""
    modules = dict(model.named_modules())
    for source, goal in places:
        path, _, name = goal.rpartition(".")
        modules[path]._modules[name] = modules[source]


def _short(cls: type[nn.ModuleList]) -> type[nn.ModuleList]:
    """The class of a shorter list of a class: a list with methods of its own keeps them."""
    if issubclass(cls, ShortList):
        return cls
    return ShortList if cls is nn.ModuleList else type(cls.__name__, (ShortList, cls), {})
