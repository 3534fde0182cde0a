"""Taking tensors apart and putting them together: slices, splits and concatenations along one dim."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.axes import ONE, Dim, Dims, Fixed, Integers
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import Result, movement, rule

ALONE = "a single position is taken"
_CHUNKS = frozenset({"chunk", "unsafe_chunk", "lstm", "gru", "lstm_cell", "gru_cell"})
_UNEVEN = frozenset({"tensor_split", "hsplit", "vsplit", "dsplit", "array_split"})


@movement("select", "select_copy")
def select(recorder: Recorder, out: Tensor, input: Tensor, dim: int, index: int, **_: Any) -> Dims:
    """One position: it and those before it (after it, when counted from the end) must stay, or the index means another."""
    dims = list(recorder.dims(input))
    chosen = dims.pop(dim)
    if isinstance(chosen, np.ndarray):
        reason = recorder.reason(f"position {index} is picked by its number")
        if index >= 0:
            recorder.entries.pick(out, chosen, index, chosen[:, : index + 1], reason)
        else:
            recorder.labels.freeze(chosen[:, index:], reason)
    return tuple(dims)


@movement("unbind", "unbind_copy")
def unbind(recorder: Recorder, out: Sequence[Tensor], input: Tensor, dim: int = 0, **_: Any) -> list[Dims]:
    """Every position on its own."""
    dims = list(recorder.dims(input))
    recorder.entries.unbind(out, dims.pop(dim), recorder.reason("unbound: the code expects this many parts"))
    return [tuple(dims)] * len(out)


@movement("slice", "slice_copy", "narrow")
def slice_(
    recorder: Recorder,
    out: Tensor,
    input: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
    **a: Any,
) -> Dims:
    """A run of positions: the bounds must follow when positions before them go. Every second position is one of each pair."""
    dims, n = list(recorder.dims(input)), input.shape[dim]
    start = 0 if start is None else start
    end = start + a["length"] if "length" in a else n if end is None else min(end, n)
    found = dims[dim]
    first, last = (start + n if start < 0 else start), (end + n if end < 0 else end)
    whole = first <= 0 and last >= n
    if step > 1 and n % step == 0 and 0 <= first < step and last >= n:
        reason = recorder.reason(f"one of every {step} positions is taken")
        dims[dim], place = recorder.labels.split_square(found, (n // step, step), reason)
        recorder.labels.freeze(place, reason)
        return tuple(dims)
    if last - first == 1 < n and step == 1 and "length" not in a and _picked(recorder, out, found, start, end, first):
        dims[dim] = ONE
        return tuple(dims)
    if isinstance(found, np.ndarray) and (recorder.sizes.name == "narrow" or not (whole and step == 1)):
        if step != 1:
            recorder.labels.freeze(found, recorder.reason(f"one of every {step} positions is taken"))
        _bound(recorder, start, found, first)
        if recorder.sizes.name == "narrow":
            recorder.size(last - first, found[:, first:last])
        else:
            _bound(recorder, end, found, last)
    if recorder.sizes.name in _UNEVEN:
        recorder.labels.freeze(found, recorder.reason(f"cut by {recorder.sizes.name}, whose parts depend on the whole"))
    positions = np.arange(max(first, 0), max(last, 0), step)
    if not whole or step != 1:
        dims[dim] = recorder.labels.take(found, positions, recorder.reason(ALONE))
    return tuple(dims)


def _picked(recorder: Recorder, out: Tensor, dim: Dim, start: int, end: int, position: int) -> bool:
    """A run of one position, between bounds that the code writes as numbers, is picked by its number."""
    if not isinstance(dim, np.ndarray) or start < 0 or recorder.sizes.name in _UNEVEN:
        return False
    if not all(recorder.sizes.is_literal(bound) for bound in (start, end)):
        return False
    recorder.entries.pick(out, dim, position, dim[:, : position + 1], recorder.reason(ALONE))
    return True


def _bound(recorder: Recorder, given: int, dim: Integers, position: int) -> None:
    """A slice's bound must equal the number of positions before it; a negative one, minus those after it."""
    n = dim.shape[1]
    if given == 0 or position >= n:
        return
    if given > 0:
        recorder.size(given, dim[:, :position])
    else:
        recorder.size(given, dim[:, position:], negative=True)


@movement("split", "unsafe_split", "split_copy")
def split(
    recorder: Recorder, out: Sequence[Tensor], input: Tensor, split_size: int | list[int], dim: int = 0, **_: Any
) -> Result:
    """Parts of one size: they must stay equal, so what stands at the same place of each part goes together."""
    if not isinstance(split_size, int):
        return split_with_sizes(recorder, out, input, split_size, dim)
    parts = _parts(recorder, input, [t.shape[dim] for t in out], dim)
    _equal_parts(recorder, parts)
    if recorder.sizes.name not in _CHUNKS:
        whole = out[0].shape[dim] == split_size
        recorder.size(split_size, parts[0] if whole else Fixed(recorder.reason("a part larger than what there is")))
    return _with_parts(recorder, input, parts, dim)


@movement("split_with_sizes", "unsafe_split_with_sizes", "split_with_sizes_copy")
def split_with_sizes(
    recorder: Recorder, out: Sequence[Tensor], input: Tensor, split_sizes: list[int], dim: int = 0, **_: Any
) -> list[Dims]:
    """Parts of given sizes: each must follow; parts whose size is one and the same expression stay equal."""
    parts = _parts(recorder, input, [t.shape[dim] for t in out], dim)
    seen: dict[Any, Dim] = {}
    for size, part in zip(split_sizes, parts, strict=True):
        expression = recorder.size(size, part)
        if expression is not None and not isinstance(expression, int):
            if expression in seen:
                recorder.labels.tie(seen[expression], part, recorder.reason("parts of one size"))
            seen[expression] = part
    if recorder.sizes.name in _CHUNKS:
        _equal_parts(recorder, parts)
    return _with_parts(recorder, input, parts, dim)


def _parts(recorder: Recorder, input: Tensor, sizes: list[int], dim: int) -> list[Dim]:
    found = recorder.dims(input)[dim]
    starts = np.cumsum([0, *sizes])
    alone = recorder.reason(ALONE)
    return [recorder.labels.take(found, np.arange(a, a + n), alone) for a, n in zip(starts, sizes, strict=False)]


def _equal_parts(recorder: Recorder, parts: Sequence[Dim]) -> None:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len({part.shape[1] for part in arrays}) > 1 or (arrays and len(arrays) < len(parts)):
        for part in arrays:
            recorder.labels.freeze(part, recorder.reason("chunked into parts of different sizes"))
    else:
        for part in arrays[1:]:
            recorder.labels.tie(arrays[0], part, recorder.reason("parts of one size"))


def _with_parts(recorder: Recorder, input: Tensor, parts: Sequence[Dim], dim: int) -> list[Dims]:
    dims = recorder.dims(input)
    at = dim % len(dims)
    return [(*dims[:at], part, *dims[at + 1 :]) for part in parts]


@rule("cat", "concatenate", "concat", keeps_zero=True)
def cat(recorder: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Dims:
    """One after the other along `dim`; the other dims are tied."""
    real = [t for t in tensors if t.ndim == out.ndim]
    at = dim % out.ndim
    return tuple(
        _one_after_the_other(recorder, real, d) if d == at else _tied(recorder, [recorder.dims(t)[d] for t in real])
        for d in range(out.ndim)
    )


def _one_after_the_other(recorder: Recorder, tensors: Sequence[Tensor], d: int) -> Dim:
    """The positions of all; those that an entry of a list made go with it."""
    sizes, lined_up = [tensor.shape[d] for tensor in tensors], recorder.entries.lined_up(tensors)
    whole = recorder.labels.concatenate([recorder.dims(tensor)[d] for tensor in tensors], sizes)
    if lined_up is None or sizes == [1] * len(sizes):
        return whole if lined_up is None else lined_up
    repeated = np.repeat(lined_up, sizes, axis=1)
    return repeated if isinstance(whole, Fixed) else np.vstack([whole, repeated])


@rule("stack", keeps_zero=True)
def stack(recorder: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Dims:
    """Along a new dim that nothing can be removed from; the other dims are tied."""
    dims = [_tied(recorder, [recorder.dims(t)[d] for t in tensors]) for d in range(out.ndim - 1)]
    lined_up = recorder.entries.lined_up(tensors)
    dims.insert(
        dim % out.ndim, Fixed(recorder.reason("stacked: the code decides how many")) if lined_up is None else lined_up
    )
    return tuple(dims)


def _tied(recorder: Recorder, dims: Sequence[Dim]) -> Dim:
    for other in dims[1:]:
        recorder.labels.tie(dims[0], other, recorder.reason("tied"))
    return next((d for d in dims if isinstance(d, Fixed)), dims[0])
