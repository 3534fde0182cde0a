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

    def __setitem__(self, place: int, module: nn.Module) -> None:
        """Another entry at a place, under the name of the one that stood there."""
        self._modules[list(self._modules)[place]] = module

    def __delitem__(self, place: int | slice) -> None:
        """The others keep their names."""
        names = list(self._modules)[place]
        for name in names if isinstance(names, list) else [names]:
            del self._modules[name]

    def append(self, module: nn.Module) -> "ShortList":
        """One more entry, under a name that none has had."""
        self.add_module(str(max(map(int, self._modules), default=-1) + 1), module)
        return self

    def extend(self, modules: Iterable[nn.Module]) -> "ShortList":
        """Several more entries."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: nn.Module) -> None:
        """One more entry, before the one at a place."""
        following = list(self._modules.items())[index:]
        for name, _ in following:
            del self._modules[name]
        self.append(module)
        self._modules.update(following)


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
    if cls is nn.ModuleList:
        return ShortList
    return type(cls.__name__, (ShortList, cls), {"__reduce__": lambda self: (_remade, (cls,), vars(self))})


def _remade(cls: type[nn.ModuleList]) -> nn.ModuleList:
    """An empty list of the shorter class of a class, for pickle and copy."""
    short = _short(cls)
    return short.__new__(short)
