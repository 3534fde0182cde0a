"""How much of a quantity belongs to each unit, when every entry of every parameter has its share?"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.axes import Integers, Network

Totals = NDArray[np.float64]
"""One number for each unit of each axis, in the order of `Network.unit_range`."""


def sum_onto_units(network: Network, quantities: Mapping[str, Tensor], only: Mapping[str, int] | None = None) -> Totals:
    """Sum over all the entries that go when a unit goes.

    Args:
        network: Whose units they are.
        quantities: For a parameter's name one number for each of its entries.
        only: For a parameter's name the only dim whose units count: those that it reads, say. An entry then counts for a unit
            there only if the unit's removal leaves its row in place.

    Returns:
        The sums in float64, `[units]`. An entry that goes with a unit counts once for it, in however many dims it does.
    """
    totals = np.zeros(network.unit_count)
    for name, quantity in quantities.items():
        dims = network.units(name)
        for d, units in enumerate(dims):
            if units is None or (only is not None and only[name] != d):
                continue
            _add(totals, units, _sum_but(quantity, (d,)))
            for e, others in enumerate(dims):
                if others is not None and (e < d or (only is not None and e != d)):
                    _take_back_twice_counted(totals, units, others, quantity, d, e)
    return totals


def by_axis(network: Network, totals: Totals) -> dict[str, NDArray[np.float64]]:
    """The totals of each axis' units, by its name."""
    return {axis.name: totals[network.unit_range(axis.name)].copy() for axis in network.axes}


def _add(totals: Totals, units: Integers, values: NDArray[np.float64]) -> None:
    for factor in units:
        there = factor >= 0
        totals += np.bincount(factor[there], values[there], minlength=len(totals))


def _take_back_twice_counted(totals: Totals, units: Integers, others: Integers, quantity: Tensor, d: int, e: int) -> None:
    """Entries at a position of dim `d` and a position of dim `e` that both go with the same unit."""
    if not np.isin(units[units >= 0], others).any():
        return
    table = _sum_but(quantity, (d, e))
    for left in units:
        for right in others:
            rows, columns = np.nonzero((left[:, None] == right[None, :]) & (left >= 0)[:, None])
            totals -= np.bincount(left[rows], table[rows, columns], minlength=len(totals))


def _sum_but(quantity: Tensor, dims: tuple[int, ...]) -> NDArray[np.float64]:
    """The sum over all dims but these, which come first, in their order."""
    first = quantity.movedim(dims, tuple(range(len(dims)))).flatten(len(dims)) if quantity.ndim > len(dims) else quantity.permute(dims)[..., None]
    summed: NDArray[np.float64] = first.sum(-1, dtype=torch.float64).cpu().numpy()
    return summed
