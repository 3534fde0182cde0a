"""Lookups: what is addressed by an index must stay in place; the other dims of the table pass through."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from secateur.axes import Dim, Dims, Fixed, Reason, Role
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import fixed_dims, rule


@rule("embedding")
def embedding(recorder: Recorder, out: Tensor, weight: Tensor, indices: Tensor, **_: Any) -> Dims:
    """Table `[v, c]`, indices `[...]`."""
    table = recorder.dims(weight)
    recorder.result_zero = recorder.zero(weight)
    recorder.labels.freeze(table[0], recorder.reason("a vocabulary: looked up by index"))
    recorder.roles.lookup(table[1:])
    return (*recorder.dims(indices), *table[1:])


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(recorder: Recorder, out: Any, weight: Tensor, **_: Any) -> list[Dims]:
    """Table `[v, c]`; the result is `[bags, c]`."""
    table = recorder.dims(weight)
    recorder.result_zero = recorder.zero(weight)
    reason = recorder.reason("a vocabulary: looked up by index")
    recorder.labels.freeze(table[0], reason)
    recorder.roles.lookup(table[1:])
    return [(Fixed(reason), table[1]), *(fixed_dims(t, reason) for t in out[1:])]


@rule("index", "_unsafe_index", follows=True)
def index(recorder: Recorder, out: Tensor, input: Tensor, indices: list[Tensor | None], **_: Any) -> Dims:
    """Advanced indexing: the indexed dims are replaced by the dims of the (broadcast) indices."""
    dims, reason = recorder.dims(input), recorder.reason("looked up by index")
    recorder.result_zero = recorder.zero(input)
    recorder.moved(input, [out])
    spans = _spans(indices)
    _address(recorder, dims, spans, indices, reason)
    passing = [d for d in range(input.ndim) if not any(start <= d < stop for start, stop in spans)]
    rank = out.ndim - len(passing)
    adjacent = all(a[1] == b[0] for a, b in pairwise(spans))
    position = sum(d < spans[0][0] for d in passing) if spans and adjacent else 0
    new: list[Dim] = [Fixed(reason)] * rank
    for dim in (dim for i in indices if i is not None for dim in recorder.dims(i) if _in_order(dim)):
        if rank == 1:
            new = [dim]
        else:
            recorder.labels.freeze(dim, reason)
    kept: list[Dim] = [dims[d] for d in passing]
    return (*kept[:position], *new, *kept[position:])


def _address(
    recorder: Recorder, dims: Dims, spans: list[tuple[int, int]], indices: list[Tensor | None], reason: Reason
) -> None:
    """The dims that indices address stay, but for those addressed by places on them: a router's choice."""
    for (start, stop), i in zip(spans, (i for i in indices if i is not None), strict=True):
        _address_along(recorder, dims[start], i, reason)
        if recorder.pointee(i) is not None:
            recorder.roles.mark(Role.GROUPED, dims[start])
        for dim in (*dims[start + 1 : stop], *recorder.dims(i)):
            if not _in_order(dim):
                recorder.labels.freeze(dim, Reason("positions of an index", reason.where))


def _spans(indices: list[Tensor | None]) -> list[tuple[int, int]]:
    """Which dims of the input each index consumes: one, or as many as a boolean mask has."""
    spans, d = [], 0
    for i in indices:
        width = i.ndim if i is not None and i.dtype in (torch.bool, torch.uint8) else 1
        if i is not None:
            spans.append((d, d + width))
        d += width
    return spans


@rule("index_select", "gather", "take_along_dim", follows=True)
def along_dim(recorder: Recorder, out: Tensor, input: Tensor, dim: int, index: Tensor, **_: Any) -> Dims:
    """Indices along one dim; a full index tensor (`gather`) addresses every dim position by position."""
    reason = recorder.reason("looked up by index")
    recorder.result_zero = recorder.zero(input)
    recorder.moved(input, [out])
    dims = list(recorder.dims(input))
    _address_along(recorder, dims[dim], index, reason)
    rows = recorder.dims(index)[dim if index.ndim == input.ndim else 0] if index.ndim else Fixed(reason)
    if not _in_order(rows):
        recorder.labels.freeze(rows, reason)
        rows = Fixed(reason)
    dims[dim] = rows
    if out.ndim != input.ndim:
        recorder.freeze_all([input], "looked up by index")
        return fixed_dims(out, reason)
    for d, size in enumerate(out.shape):
        if d != dim % input.ndim and size != input.shape[d]:
            recorder.labels.freeze(dims[d], reason)
            dims[d] = Fixed(reason)
    if index.ndim == input.ndim:
        for d, (ours, theirs) in enumerate(zip(dims, recorder.dims(index), strict=True)):
            if d != dim % input.ndim and index.shape[d] != 1:
                recorder.labels.tie(ours, theirs, reason)
    return tuple(dims)


def _address_along(recorder: Recorder, dim: Dim, index: Tensor, reason: Reason) -> None:
    """Addressed by index, a dim stays; by places on it, it is the dim that these are places on.

    Rows that were sorted are put back by an index, as far as one can see; the permutation proof sees whether they are.
    """
    if (pointee := recorder.pointee(index)) is not None:
        recorder.labels.tie(dim, pointee, reason)
        return
    recorder.used(index)
    if not _in_order(dim):
        recorder.labels.freeze(dim, reason)


def _in_order(dim: Dim) -> bool:
    """Whether the positions of a dim are sorted by the order of another."""
    return isinstance(dim, Fixed) and dim.order is not None


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(
    recorder: Recorder, out: Tensor, input: Tensor, indices: list[Tensor | None], values: Tensor, **_: Any
) -> Dims:
    """Writes at an index: the indexed dims stay; the values stand for the dims that pass."""
    dims, reason = list(recorder.dims(input)), recorder.reason("written by index")
    spans = _spans(indices)
    passing = [d for d in range(input.ndim) if not any(start <= d < stop for start, stop in spans)]
    for d in range(input.ndim):
        if d not in passing:
            if not _in_order(dims[d]):
                recorder.labels.freeze(dims[d], reason)
            dims[d] = Fixed(reason)
    trailing = passing[::-1] if spans and spans[0][0] == 0 else []
    theirs = recorder.dims(values)
    for offset, theirs_dim in enumerate(reversed(theirs)):
        if values.shape[len(theirs) - 1 - offset] == 1:
            continue
        if offset < len(trailing):
            recorder.labels.tie(dims[trailing[offset]], theirs_dim, reason)
        else:
            recorder.labels.freeze(theirs_dim, reason)
    if not trailing:
        for d in passing:
            recorder.labels.freeze(dims[d], reason)
    return tuple(dims)


@rule(
    *("scatter", "scatter_add", "scatter_reduce", "index_add", "index_reduce", "index_copy", "index_fill"), follows=True
)
def along_dim_put(recorder: Recorder, out: Tensor, input: Tensor, dim: int, index: Tensor, **arguments: Any) -> Dims:
    """Writes at indices along one dim; a full index tensor (`scatter`) addresses every dim position by position."""
    dims, reason = recorder.dims(input), recorder.reason("written by index")
    written = next((v for key in ("source", "src") if isinstance(v := arguments.get(key), Tensor)), None)
    recorder.result_zero = recorder.zero(input) and written is not None and recorder.zero(written)
    recorder.used(input, *([] if written is None else [written]))
    _address_along(recorder, dims[dim], index, reason)
    along: list[Dim] = []
    for other in (index, written):
        if other is None:
            continue
        for d, theirs in enumerate(recorder.dims(other)):
            if d == dim % input.ndim or other.ndim != input.ndim:
                along.append(theirs)
            elif other.shape[d] != input.shape[d]:
                recorder.labels.freeze(theirs, reason)
                recorder.labels.freeze(dims[d], reason)
            elif other.shape[d] != 1:
                recorder.labels.tie(dims[d], theirs, reason)
    for theirs in along:
        if not (_in_order(theirs) and len(along) == 2):
            recorder.labels.freeze(theirs, reason)
    if len(along) == 2:
        recorder.labels.tie(along[0], along[1], reason)
    return dims


@rule("masked_scatter")
def scatter(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """Writes at positions that the data decide."""
    tensors = [input, *(value for value in arguments.values() if isinstance(value, Tensor))]
    recorder.freeze_all(tensors, "written by index")
    return recorder.dims(input)
