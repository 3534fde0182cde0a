"""How many units of an axis must go together, so that the widths of tensors stay multiples of a number.

The rule, for `multiple_of = m`:

- An axis with `p` positions a unit goes in steps of `m / gcd(m, p)` units, taken over all the matrices it lives in: for m = 8,
  8 channels, but one head of 64 positions. Vectors and buffers have no say, because no kernel multiplies by them, unless the
  axis lives in nothing else.
  A learned table such as `[offsets, heads]` looks like a matrix from here, so that its heads go in eights.
- Where two axes share a dim (heads and their width), the larger axis sees to it that the dim is a multiple, and the smaller
  one counts only the positions that are left for certain.
- An axis with fewer than two steps would be all or nothing; it goes unit by unit instead, and its widths are what they are.
- An axis whose size is no multiple of its step keeps all of its units, or a multiple.
"""

from collections.abc import Iterator, Mapping
from math import gcd, prod

import numpy as np

from secateur.axes import Integers, Network

Segment = tuple[int, tuple[int, ...]]
"""So many positions a combination of units, one unit of each of these axes (by index)."""


def axis_steps(network: Network, multiple_of: int, whole: frozenset[str]) -> dict[str, int]:
    """How many units go together, for every axis.

    Args:
        network: Whose axes.
        multiple_of: What widths shall be multiples of; 1 = anything.
        whole: The axes of which nothing will go.

    Returns:
        For each axis' name its step, at least 1.
    """
    if multiple_of == 1:
        return {axis.name: 1 for axis in network.axes}
    segments = _segments_by_axis(network)
    # What divides the number of units that stay of each axis, as far as is known.
    divisor = {i: axis.size if axis.name in whole else 1 for i, axis in enumerate(network.axes)}
    steps: dict[int, int] = {}
    for i in sorted(divisor, key=lambda i: -network.axes[i].size):
        step = multiple_of // gcd(multiple_of, *(_positions(segment, i, divisor) for segment in segments[i]))
        size = network.axes[i].size
        steps[i] = step if size >= 2 * step else 1
        if network.axes[i].name not in whole:
            divisor[i] = gcd(steps[i], size)
    return {axis.name: steps[i] for i, axis in enumerate(network.axes)}


def _positions(segment: Segment, axis: int, divisor: Mapping[int, int]) -> int:
    """How many positions of a segment are certain to go with one unit of an axis."""
    positions, axes = segment
    return positions * prod(divisor[other] for other in axes if other != axis)


def _segments_by_axis(network: Network) -> list[set[Segment]]:
    matrices: list[set[Segment]] = [set() for _ in network.axes]
    others: list[set[Segment]] = [set() for _ in network.axes]
    known: dict[int, list[Segment]] = {}
    owner = np.append(np.repeat(np.arange(len(network.axes)), [axis.size for axis in network.axes]), -1)
    for tensor, spec in network.tensors.items():
        found = matrices if spec.parameter and sum(size > 1 for size in spec.shape) > 1 else others
        for units in network.dims[tensor]:
            if units is None:
                continue
            if id(units) not in known:
                known[id(units)] = list(_segments(network, owner[units]))
            for segment in known[id(units)]:
                for axis in segment[1]:
                    found[axis].add(segment)
    return [here or elsewhere for here, elsewhere in zip(matrices, others, strict=True)]


def _segments(network: Network, axes: Integers) -> Iterator[Segment]:
    """The combinations of axes that the positions of one dim, `[factors, n]`, belong to."""
    number = np.zeros(axes.shape[1], dtype=np.int64)
    for row in axes:
        # Numbered anew after each factor, because powers of the number of axes overflow.
        _, number = np.unique(number * (len(network.axes) + 1) + row + 1, return_inverse=True)
    _, first, counts = np.unique(number, return_index=True, return_counts=True)
    for column, positions in zip(axes[:, first].T.tolist(), counts.tolist(), strict=True):
        members = tuple(sorted(axis for axis in column if axis >= 0))
        if members:
            yield positions // prod(network.axes[axis].size for axis in members), members
