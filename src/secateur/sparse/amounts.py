"""How many units go of each layer: from a sparsity, an allocation, or what a pattern says itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod

import torch
from torch import Tensor

from secateur.errors import BudgetError, PlanError
from secateur.sparse.allocation import Allocation, Alone, Cutoff, Lowest, Share, even
from secateur.sparse.counts import apportion, count_of, share_of
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.torch.products import Product

Sparsity = float | Fraction | Mapping[str, float | Fraction]
"""A share for all weights, or shares by name patterns, of which the last that fits counts; `"*"` is all of them."""

OneAlone = Callable[[Layer, Sequence[int]], Alone]
"""Makes one layer of a dense model sparse, without so many units of each of its groups."""


def counts_of(
    layers: Sequence[Layer],
    pattern: Pattern,
    sparsity: Sparsity | None,
    allocation: Allocation | Cutoff,
    scores: Callable[[], Mapping[Product, Tensor]],
    alone: OneAlone | None = None,
) -> dict[Product, list[int]]:
    """How many units go of each layer, group by group.

    Args:
        layers: All that can become sparse.
        pattern: What goes together.
        sparsity: The share that goes; None where the pattern or the allocation says it.
        allocation: How it is divided.
        scores: Gives the scores of each layer, `[groups, out, in]`, where they decide.
        alone: Makes one layer sparse alone, without so many units of each of its groups, where measurements decide.

    Raises:
        BudgetError: The sparsity is missing, out of range, or does not go with the pattern or the allocation.
        PlanError: A name pattern fits nothing.
    """
    check_amount(pattern, sparsity, allocation)
    units = {layer.product: _units(layer, pattern) for layer in layers}
    compared = _compares_all(pattern)
    allocation = Lowest() if compared and allocation is even else allocation
    if pattern.share is not None:
        return {product: [int(n * pattern.share + 0.5) for n in each] for product, each in units.items()}
    shares = [_share(layer, units[layer.product], scores, alone) for layer in layers]
    if isinstance(allocation, Cutoff):
        gone = allocation.cut(shares)
        if sum(gone) == sum(share.units for share in shares):
            raise BudgetError(f"{allocation} lets all weights go; look at the scores, or give a sparsity instead")
    elif isinstance(sparsity, Mapping):
        by_layer = _shares(layers, sparsity)
        gone = [count_of(by_layer[layer.product], sum(units[layer.product])) for layer in layers]
    else:
        assert sparsity is not None
        gone = allocation(shares, sparsity)
    counts = {}
    for layer, n in zip(layers, gone, strict=True):
        each = units[layer.product]
        counts[layer.product] = _lowest(n, scores()[layer.product]) if compared else apportion(n, each, each)
    return counts


def _share(
    layer: Layer, units: Sequence[int], scores: Callable[[], Mapping[Product, Tensor]], alone: OneAlone | None
) -> Share:
    kernel = () if layer.product.window is None else layer.product.window.kernel
    groups, out, columns = layer.shape
    dims = (groups * out, columns // prod(kernel), *kernel)
    share = Share(layer.name, dims, sum(units), lambda: scores()[layer.product])
    if alone is None:
        return share
    return replace(share, alone=lambda count: alone(layer, apportion(count, units, units)))


def _lowest(count: int, scores: Tensor) -> list[int]:
    """How many of each group are among the lowest scores `[groups, out, in]` of a layer."""
    lowest = scores.flatten().argsort(stable=True)[:count]
    return torch.bincount(lowest // scores[0].numel(), minlength=len(scores)).tolist()


def check_amount(pattern: Pattern, sparsity: Sparsity | None, allocation: Allocation | Cutoff) -> None:
    """Refuse what cannot go together, whatever the model.

    Raises:
        BudgetError: The sparsity is missing, out of range, or does not go with the pattern or the allocation.
    """
    for share in sparsity.values() if isinstance(sparsity, Mapping) else [] if sparsity is None else [sparsity]:
        share_of(share)
    compares = isinstance(allocation, Lowest | Cutoff)
    if _compares_all(pattern) and (isinstance(sparsity, Mapping) or not (compares or allocation is even)):
        raise BudgetError(
            "all tensors are compared with each other: give one sparsity, and no allocation but one that compares, such as "
            "Lowest(floor=0.05)"
        )
    if compares and not _compares_all(pattern):
        raise BudgetError(
            f"{allocation} compares the weights of all tensors, and {pattern} does not; choose patterns.Unstructured('global')"
        )
    if pattern.share is not None:
        if sparsity is not None and (isinstance(sparsity, Mapping) or float(share_of(sparsity)) != pattern.share):
            raise BudgetError(
                f"{pattern} has a sparsity of {pattern.share:g}; leave sparsity= out, or choose another pattern"
            )
    elif isinstance(allocation, Cutoff):
        if sparsity is not None:
            raise BudgetError(f"{allocation} decides how much goes; leave sparsity= out, or choose another allocation")
    elif sparsity is None:
        raise BudgetError(f"{pattern} needs a sparsity, such as sparsity=0.5")


def _compares_all(pattern: Pattern) -> bool:
    """Whether weights of all tensors are compared with each other."""
    return isinstance(pattern, Unstructured) and pattern.scope == "global"


def _shares(layers: Sequence[Layer], sparsity: Mapping[str, float | Fraction]) -> dict[Product, float | Fraction]:
    """The sparsity of each layer; the last pattern that fits its name counts."""
    found: dict[Product, float | Fraction] = {}
    for name, share in sparsity.items():
        fits = [
            layer.product
            for layer in layers
            if fnmatchcase(layer.name, name) or fnmatchcase(layer.product.tensor, name)
        ]
        if not fits:
            raise PlanError(
                f"sparsity={{{name!r}: ...}} fits no weight; there are {', '.join(x.name for x in layers[:5])}..."
            )
        found.update(dict.fromkeys(fits, share))
    if left := [layer.name for layer in layers if layer.product not in found]:
        raise BudgetError(
            f"no sparsity is given for {', '.join(left[:5])}; add '*' as the first pattern, or exclude them"
        )
    return found


def _units(layer: Layer, pattern: Pattern) -> list[int]:
    groups, out, columns = layer.shape
    return [pattern.units(torch.empty(out, columns, device="meta")).numel()] * groups


def check_fit(layers: Sequence[Layer], pattern: Pattern) -> None:
    """Refuse layers that a pattern does not fit.

    Raises:
        PlanError: There are some; names them.
    """
    wrong = []
    for layer in layers:
        try:
            pattern.check(layer.shape[2])
        except PlanError as error:
            wrong.append(f"{layer.name}: {error}")
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise PlanError(f"{pattern} does not fit {'; '.join(wrong[:4])}{more}")
