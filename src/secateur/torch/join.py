"""Batches that are joined into larger ones."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.torch.batches import batch_size, part
from secateur.torch.capture import Inputs

logger = logging.getLogger(__name__)


def joined(pieces: Sequence[Inputs], at_most: int) -> Inputs:
    """One batch of at most so many samples; pieces that do not fit the first are left out."""
    count, fitting = 0, []
    for piece in pieces:
        if _alike(pieces[0], piece):
            fitting.append(piece)
            count += batch_size(piece)
        if count >= at_most:
            break
    if len(fitting) < len(pieces) and count < at_most:
        logger.warning(
            "%d of %d batches are left out: their tensors are not shaped as those of the first",
            len(pieces) - len(fitting),
            len(pieces),
        )
    return part(_one(fitting), None, 0, min(count, at_most))[0]


def together(pieces: Sequence[Inputs], at_least: int) -> list[Inputs]:
    """The same samples in the same order, in batches of at least so many; those that do not fit their neighbours stay smaller.

    Example:
        >>> [len(x) for x in together(torch.zeros(7, 2).split(1), at_least=3)]
        [3, 4]
    """
    groups: list[list[Inputs]] = []
    size, left = 0, sum(map(batch_size, pieces))
    for piece in pieces:
        if groups and min(size, left) < at_least and _alike(groups[-1][0], piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
            size = 0
        size += batch_size(piece)
        left -= batch_size(piece)
    return list(map(_one, groups))


def _one(pieces: Sequence[Inputs]) -> Inputs:
    """Pieces that are alike, as one; tensors with another first dim than the samples are those of the first piece."""
    if len(pieces) == 1:
        return pieces[0]
    size, (first, form) = batch_size(pieces[0]), pytree.tree_flatten(pieces[0])
    along = [isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size for leaf in first]
    leaves = zip(*map(pytree.tree_leaves, pieces), strict=True)
    whole: Inputs = pytree.tree_unflatten(
        [torch.cat(same) if cut else same[0] for cut, same in zip(along, leaves, strict=True)], form
    )
    return whole


def _alike(one: Inputs, other: Inputs) -> bool:
    """Whether two batches differ in the number of samples alone."""
    (leaves, form), (others, other_form) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return form == other_form and all(map(_fits, leaves, others))


def _fits(leaf: Any, other: Any) -> bool:
    if not isinstance(leaf, Tensor) or not isinstance(other, Tensor):
        return type(leaf) is type(other)
    return leaf.shape[1:] == other.shape[1:] and leaf.dtype == other.dtype and leaf.ndim == other.ndim
