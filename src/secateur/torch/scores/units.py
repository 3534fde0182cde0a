"""How much of a quantity belongs to each unit, when every entry of every parameter has its share?"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.axes import Integers, Network

Totals = NDArray[np.float64]
"""One number for each unit of each axis, in the order of `Network.unit_range`."""


def sum_onto_units(network: Network, quantities: Iterable[tuple[str, Tensor]], dim: int | None = None) -> Totals:
    """Sum over all the entries that go when a unit goes.

    Args:
        network: Whose units they are.
        quantities: Parameters by name, with one number for each of their entries; used one after the other.
        dim: The one dim whose units count: the one that is read, say. An entry that another of its dims removes with the same
            unit then does not count at all. None = all dims.

    Returns:
        The sums in float64, `[units]`. For all dims, an entry counts once for a unit, in however many dims that lives.
    """
    totals = np.zeros(network.unit_count)
    for name, quantity in quantities:
        for d, units in enumerate(network.units(name)):
            if units is None or (dim is not None and dim != d):
                continue
            add_at(totals, units, _sum_but(quantity, d))
            for e, others in enumerate(network.units(name)):
                if others is not None and (e < d if dim is None else e != d):
                    _take_back(totals, quantity, (d, units), (e, others))
    return totals


def by_axis(network: Network, totals: Totals) -> dict[str, NDArray[np.float64]]:
    """The totals of each axis' units, by its name."""
    return {axis.name: totals[network.unit_range(axis.name)].copy() for axis in network.axes}


def add_at(totals: Totals, units: Integers, values: NDArray[np.float64]) -> None:
    """Add `values` `[n]` to the units `[factors, n]` of each position; -1 is no unit."""
    for factor in units:
        there = factor >= 0
        totals += np.bincount(factor[there], values[there], minlength=len(totals))


def positions(units: Integers, span: slice) -> Integers | None:
    """Where the units of an axis lie along a dim, so that units can be compared place by place.

    Args:
        units: Those of each position, `[factors, n]`.
        span: The numbers of the axis' units.

    Returns:
        `[units, positions]`, in ascending order; None where they do not have equally many, or none at all.

    Example:
        >>> positions(np.array([[5, 6, 5, 6, -1]]), slice(5, 7)).tolist()
        [[0, 2], [1, 3]]
    """
    factors, places = np.nonzero((units >= span.start) & (units < span.stop))
    owners, places = np.unique(np.stack([units[factors, places], places]), axis=1)
    size, counts = span.stop - span.start, np.bincount(owners - span.start, minlength=span.stop - span.start)
    return places.reshape(size, -1) if counts.all() and (counts == counts[0]).all() else None


def _take_back(totals: Totals, quantity: Tensor, one: tuple[int, Integers], other: tuple[int, Integers]) -> None:
    """Subtract the entries that lie at a unit's positions of both dims."""
    (d, units), (e, others) = one, other
    if not np.isin(units[units >= 0], others).any():
        return
    table = _sum_but(quantity, d, e)
    for left in units:
        for right in others:
            rows, columns = np.nonzero((left[:, None] == right) & (left[:, None] >= 0))
            totals -= np.bincount(left[rows], table[rows, columns], minlength=len(totals))


def _sum_but(quantity: Tensor, *dims: int) -> NDArray[np.float64]:
    """The sum over all dims but these; they come in the order given."""
    rest = [dim for dim in range(quantity.ndim) if dim not in dims]
    summed = quantity.sum(rest, dtype=torch.float64) if rest else quantity.to(torch.float64)
    array: NDArray[np.float64] = summed.cpu().numpy()
    return array if list(dims) == sorted(dims) else array.T
