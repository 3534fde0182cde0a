"""Which axes stay whole, by patterns over names."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from secateur.axes import Axis, Network
from secateur.errors import PlanError


def excluded_axes(network: Network, patterns: Sequence[str]) -> frozenset[str]:
    """The axes that a pattern names, by themselves or by something they live in.

    The exact name of an axis names that axis alone. Any other pattern (`*`, `?`, `[abc]`) is held against the axis' name and, for
    every slot of the axis, against the name of its tensor and of the modules around it. So a module's path stands for all that
    is in it, and keeps its shape; where a module's path is the name of an axis too, write `path.*` for the module.

    Args:
        network: Whose axes.
        patterns: For example `("classifier*", "layer4")`.

    Returns:
        The names of the axes that must stay whole. A pattern may name a layer that has no axis.

    Raises:
        PlanError: A pattern names no axis, tensor or module of the network.
    """
    everything = set(_paths(network.tensors)) | {axis.name for axis in network.axes}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise PlanError(_unmatched(pattern, everything))
    exact = {axis.name for axis in network.axes} & set(patterns)
    wider = [pattern for pattern in patterns if pattern not in exact]
    return frozenset(exact | {axis.name for axis in network.axes if _is_named(axis, wider)})


def _is_named(axis: Axis, patterns: Sequence[str]) -> bool:
    names = {axis.name, *_paths(slot.tensor for slot in axis.slots)}
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _paths(tensors: Iterable[str]) -> Iterator[str]:
    """Each tensor's name and the paths of the modules around it."""
    for tensor in tensors:
        parts = tensor.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _unmatched(pattern: str, names: set[str]) -> str:
    near = get_close_matches(pattern.strip("*?"), sorted(names), n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else "network.axes and network.tensors have the names"
    return f"exclude={pattern!r} names no axis, tensor or module of this network; {hint}"
