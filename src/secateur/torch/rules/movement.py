"""Data movement: labels move as the data do, dim by dim; only a reshape has to look at them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.axes import ONE, Dim, Dims, Fixed, Integers
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import Result, fixed_dims, rule

_CHUNKS = frozenset({"chunk", "unsafe_chunk", "lstm", "gru", "lstm_cell", "gru_cell"})
_BROADCASTS = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "matmul __matmul__ __rmatmul__ bmm einsum tensordot linear scaled_dot_product_attention expand_as "
        "broadcast_tensors meshgrid normalize"
    ).split()
)
"""Functions that repeat a dim for the sake of another tensor, to which it is tied afterwards."""

_UNEVEN = frozenset({"tensor_split", "hsplit", "vsplit", "dsplit", "array_split"})


@rule(
    "clone",
    "alias",
    "detach",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "lift_fresh_copy",
    "to",
    "positive",
    keeps_zero=True,
)
@rule(
    "conj",
    "_conj",
    "resolve_conj",
    "resolve_neg",
    "flip",
    "view_as_real_copy",
    "bernoulli_p",
    "alpha_dropout",
    keeps_zero=True,
)
@rule("feature_dropout", keeps_zero=True)
def same(recorder: Recorder, out: Tensor, input: Tensor, dims: Sequence[int] = (), **_: Any) -> Dims:
    """The same positions; a flip reverses them."""
    found = list(recorder.dims(input))
    for d in dims:
        dim = found[d]
        found[d] = dim if isinstance(dim, Fixed) else np.ascontiguousarray(dim[:, ::-1])
    return tuple(found)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy", "view_copy", keeps_zero=True)
def view(recorder: Recorder, out: Tensor, input: Tensor, size: list[int] | None = None, **_: Any) -> Dims:
    """Row-major reshape."""
    if size is None:
        return recorder.dims(input)
    reason = recorder.reason("split or merged unevenly by a view")
    dims = recorder.labels.reshape(recorder.dims(input), tuple(input.shape), tuple(out.shape), reason)
    for given, n, dim in zip(size, out.shape, dims, strict=True):
        recorder.size(given, ONE if n == 1 or given == -1 else dim)
    return dims


@rule("permute", "permute_copy", keeps_zero=True)
def permute(recorder: Recorder, out: Tensor, input: Tensor, dims: list[int], **_: Any) -> Dims:
    """Dims in another order."""
    found = recorder.dims(input)
    return tuple(found[d] for d in dims)


@rule("transpose", "transpose_copy", "swapaxes", keeps_zero=True)
def transpose(recorder: Recorder, out: Tensor, input: Tensor, dim0: int, dim1: int, **_: Any) -> Dims:
    """Two dims swapped."""
    found = list(recorder.dims(input))
    if found:
        found[dim0], found[dim1] = found[dim1], found[dim0]
    return tuple(found)


@rule("t", "t_copy", "numpy_T", "mT", keeps_zero=True)
def t(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """A matrix transposed."""
    return tuple(reversed(recorder.dims(input)))


@rule("unsqueeze", "unsqueeze_copy", keeps_zero=True)
def unsqueeze(recorder: Recorder, out: Tensor, input: Tensor, dim: int, **_: Any) -> Dims:
    """A new dim of size 1."""
    found = list(recorder.dims(input))
    found.insert(dim % (len(found) + 1), ONE)
    return tuple(found)


@rule("squeeze", "squeeze_copy", keeps_zero=True)
def squeeze(recorder: Recorder, out: Tensor, input: Tensor, dim: Any = None, **_: Any) -> Dims:
    """Dims of size 1 dropped."""
    dims = recorder.dims(input)
    named = range(len(dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    drop = {d % len(dims) for d in named if dims and dims[d] is ONE}
    return tuple(found for d, found in enumerate(dims) if d not in drop)


@rule("expand", "expand_copy", keeps_zero=True)
def expand(recorder: Recorder, out: Tensor, input: Tensor, size: list[int], **_: Any) -> Dims:
    """A dim of size 1 repeated: each repetition is as good as another, so it gets labels of its own."""
    found = (ONE,) * (out.ndim - input.ndim) + recorder.dims(input)
    before = (1,) * (out.ndim - input.ndim) + tuple(input.shape)
    dims: list[Dim] = []
    for given, old, new, dim in zip(size, before, out.shape, found, strict=True):
        repeated = recorder.labels.fresh(new) if old == 1 and new > 1 else dim
        expression = recorder.size(given, repeated if given != -1 else ONE)
        if expression is None and repeated is not dim and recorder.sizes.name not in _BROADCASTS:
            recorder.labels.freeze(repeated, recorder.reason(f"{recorder.sizes.name} decides how many"))
        dims.append(repeated)
    return tuple(dims)


@rule("select", "select_copy", keeps_zero=True)
def select(recorder: Recorder, out: Tensor, input: Tensor, dim: int, index: int, **_: Any) -> Dims:
    """One position: it and those before it (after it, when counted from the end) must stay, or the index means another."""
    dims = list(recorder.dims(input))
    chosen = dims.pop(dim)
    if isinstance(chosen, np.ndarray):
        before = chosen[:, : index + 1] if index >= 0 else chosen[:, index:]
        recorder.labels.freeze(before, recorder.reason(f"position {index} is picked by its number"))
    return tuple(dims)


@rule("unbind", "unbind_copy", keeps_zero=True)
def unbind(recorder: Recorder, out: Sequence[Tensor], input: Tensor, dim: int = 0, **_: Any) -> list[Dims]:
    """Every position on its own."""
    dims = list(recorder.dims(input))
    recorder.labels.freeze(dims.pop(dim), recorder.reason("unbound: the code expects this many parts"))
    return [tuple(dims)] * len(out)


@rule("slice", "slice_copy", "narrow", keeps_zero=True)
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
    """A run of positions: the bounds must follow when positions before them go."""
    dims, n = list(recorder.dims(input)), input.shape[dim]
    start = 0 if start is None else start
    end = start + a["length"] if "length" in a else n if end is None else min(end, n)
    found = dims[dim]
    first, last = (start + n if start < 0 else start), (end + n if end < 0 else end)
    whole = first <= 0 and last >= n
    if isinstance(found, np.ndarray) and (recorder.sizes.name == "narrow" or not (whole and step == 1)):
        if step != 1:
            recorder.labels.freeze(found, recorder.reason(f"every {step}th position is taken"))
        _bound(recorder, start, found, first)
        if recorder.sizes.name == "narrow":
            recorder.size(last - first, found[:, first:last])
        else:
            _bound(recorder, end, found, last)
    if recorder.sizes.name in _UNEVEN:
        recorder.labels.freeze(found, recorder.reason(f"cut by {recorder.sizes.name}, whose parts depend on the whole"))
    positions = np.arange(max(first, 0), max(last, 0), step)
    dims[dim] = recorder.labels.take(found, positions) if not whole or step != 1 else found
    return tuple(dims)


def _bound(recorder: Recorder, given: int, dim: Integers, position: int) -> None:
    """A slice's bound must equal the number of positions before it; a negative one, minus those after it."""
    n = dim.shape[1]
    if given == 0 or position >= n:
        return
    if given > 0:
        recorder.size(given, dim[:, :position])
    else:
        recorder.size(given, dim[:, position:], negative=True)


@rule("split", "unsafe_split", "split_copy", keeps_zero=True)
def split(
    recorder: Recorder, out: Sequence[Tensor], input: Tensor, split_size: int | list[int], dim: int = 0, **_: Any
) -> Result:
    """Parts of one size: they must stay equal, so what stands at the same place of each part goes together."""
    if not isinstance(split_size, int):
        return split_with_sizes(recorder, out, input, split_size, dim)
    parts = _parts(recorder, input, [t.shape[dim] for t in out], dim)
    _equal_parts(recorder, parts)
    if recorder.sizes.name not in _CHUNKS:
        recorder.size(split_size, parts[0])
    return _with_parts(recorder, input, parts, dim)


@rule("split_with_sizes", "unsafe_split_with_sizes", "split_with_sizes_copy", keeps_zero=True)
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
    return [recorder.labels.take(found, np.arange(a, a + n)) for a, n in zip(starts, sizes, strict=False)]


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
        recorder.labels.concatenate([recorder.dims(t)[d] for t in real], [t.shape[d] for t in real])
        if d == at
        else _tied(recorder, [recorder.dims(t)[d] for t in real])
        for d in range(out.ndim)
    )


@rule("stack", keeps_zero=True)
def stack(recorder: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Dims:
    """Along a new dim that nothing can be removed from; the other dims are tied."""
    dims = [_tied(recorder, [recorder.dims(t)[d] for t in tensors]) for d in range(out.ndim - 1)]
    dims.insert(dim % out.ndim, Fixed(recorder.reason("stacked: the code decides how many")))
    return tuple(dims)


def _tied(recorder: Recorder, dims: Sequence[Dim]) -> Dim:
    for other in dims[1:]:
        recorder.labels.tie(dims[0], other, recorder.reason("tied"))
    return next((d for d in dims if isinstance(d, Fixed)), dims[0])


@rule("copy", keeps_zero=True)
def copy(recorder: Recorder, out: Tensor, input: Tensor, src: Tensor, **_: Any) -> Dims:
    """One tensor written over another, under broadcasting."""
    dims = recorder.dims(input)
    for offset, dim in enumerate(reversed(recorder.dims(src)), start=1):
        if src.shape[-offset] != 1:
            recorder.labels.tie(dims[-offset], dim, recorder.reason("tied"))
    return dims


@rule("slice_scatter", "select_scatter", "set", "resize", keeps_zero=True)
def rewritten(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """A tensor whose storage or positions are exchanged."""
    tensors = [input, *(value for value in arguments.values() if isinstance(value, Tensor))]
    return fixed_dims(out, recorder.freeze_all(tensors, "its positions are exchanged"))


@rule("roll", keeps_zero=True)
def roll(recorder: Recorder, out: Tensor, input: Tensor, shifts: list[int], dims: Sequence[int] = (), **_: Any) -> Dims:
    """Positions shifted by a number: along a rolled dim they must stay."""
    found, reason = list(recorder.dims(input)), recorder.reason("rolled by a number of positions")
    for d in dims or range(input.ndim):
        recorder.labels.freeze(found[d], reason)
        found[d] = Fixed(reason)
    return tuple(found)


@rule("constant_pad_nd", keeps_zero=True)
def pad(recorder: Recorder, out: Tensor, input: Tensor, pad: list[int], value: float = 0, **_: Any) -> Dims:
    """Literal numbers put before and after: those positions stay, the ones between run through."""
    if value != 0:
        recorder.result_zero = False
    found, constant = list(recorder.dims(input)), Fixed(recorder.reason("padding"))
    for d, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        if min(before, after) < 0:
            recorder.labels.freeze(found[-d], recorder.reason("cropped by a number of positions"))
            found[-d] = constant
        elif before or after:
            parts = (constant, found[-d], constant)
            found[-d] = recorder.labels.concatenate(parts, (before, input.shape[-d], after))
    return tuple(found)


@rule(
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    keeps_zero=True,
)
@rule("replication_pad3d", keeps_zero=True)
@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    keeps_zero=True,
)
@rule("max_pool2d", "max_pool3d", keeps_zero=True)
@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", keeps_zero=True)
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "fractional_max_pool2d", keeps_zero=True)
@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", keeps_zero=True)
@rule("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", keeps_zero=True)
@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", keeps_zero=True)
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler_2d", "grid_sampler_3d", keeps_zero=True)
def image(recorder: Recorder, out: Any, input: Tensor, **_: Any) -> Any:
    """Windows over the image axes, each channel by itself."""
    outs = [out] if isinstance(out, Tensor) else list(out)
    spatial = {"1": 1, "2": 2, "3": 3}
    name = recorder.operator
    rank = next((spatial[c] for c in name if c in spatial), input.ndim - 2)
    dims, reason = recorder.dims(input), recorder.reason("an image axis")
    for dim in dims[input.ndim - rank :]:
        recorder.labels.freeze(dim, reason)
    result: list[Dims] = [(*dims[: input.ndim - rank], *[Fixed(reason)] * rank) for _ in outs]
    return result[0] if isinstance(out, Tensor) else result


@rule("max_unpool2d", "max_unpool3d", keeps_zero=True)
def unpool(recorder: Recorder, out: Tensor, input: Tensor, indices: Tensor, **_: Any) -> Dims:
    """Values put back where a pooling took them from: the indices have the same channels."""
    rank = 3 if recorder.operator.endswith("3d") else 2
    reason, dims = recorder.reason("an image axis"), recorder.dims(input)
    for ours, theirs in zip(dims, recorder.dims(indices), strict=True):
        recorder.labels.tie(ours, theirs, reason)
    for dim in dims[input.ndim - rank :]:
        recorder.labels.freeze(dim, reason)
    return (*dims[: input.ndim - rank], *[Fixed(reason)] * rank)


@rule("pixel_shuffle", keeps_zero=True)
def pixel_shuffle(recorder: Recorder, out: Tensor, input: Tensor, upscale_factor: int, **_: Any) -> Dims:
    """Channels seen as (channels, r, r), with r moved to the image axes."""
    dims, reason = recorder.dims(input), recorder.reason("moved to an image axis")
    sizes = (out.shape[-3], upscale_factor, upscale_factor)
    channels, *factors = recorder.labels.split_square(dims[-3], sizes, reason)
    for dim in (*factors, *dims[-2:]):
        recorder.labels.freeze(dim, reason)
    return (*dims[:-3], channels, Fixed(reason), Fixed(reason))


@rule("pixel_unshuffle", keeps_zero=True)
def pixel_unshuffle(recorder: Recorder, out: Tensor, input: Tensor, downscale_factor: int, **_: Any) -> Dims:
    """Image axes cut by r, with r moved to the channels."""
    dims, reason = recorder.dims(input), recorder.reason("moved to a channel axis")
    for dim in dims[-2:]:
        recorder.labels.freeze(dim, reason)
    sizes = (input.shape[-3], downscale_factor, downscale_factor)
    (channels,) = recorder.labels.reshape((dims[-3], Fixed(reason), Fixed(reason)), sizes, (out.shape[-3],), reason)
    return (*dims[:-3], channels, Fixed(reason), Fixed(reason))


@rule("channel_shuffle", "native_channel_shuffle", keeps_zero=True)
def channel_shuffle(recorder: Recorder, out: Tensor, input: Tensor, groups: int, **_: Any) -> Dims:
    """Channels seen as (groups, rest), transposed."""
    dims = recorder.dims(input)
    group, rest = recorder.labels.split_square(
        dims[1], (groups, input.shape[1] // groups), recorder.reason("a channel shuffle")
    )
    recorder.labels.freeze(group, recorder.reason("the number of groups of a channel shuffle"))
    shape = (input.shape[1] // groups, groups)
    merged = recorder.labels.reshape((rest, group), shape, (input.shape[1],), recorder.reason("a channel shuffle"))
    return (dims[0], merged[0], *dims[2:])


@rule("repeat", "tile", keeps_zero=True)
def repeat(recorder: Recorder, out: Tensor, input: Tensor, repeats: list[int], **_: Any) -> Dims:
    """Whole dims laid end to end."""
    found = (ONE,) * (out.ndim - input.ndim) + recorder.dims(input)
    dims: list[Dim] = []
    for times, n, dim in zip(repeats, out.shape, found, strict=True):
        if dim is ONE and n > 1:
            dim = recorder.labels.fresh(n)
            recorder.size(times, dim)
        elif isinstance(dim, np.ndarray):
            dim = np.tile(dim, (1, times))
        dims.append(dim)
    return tuple(dims)


@rule("tril", "triu", keeps_zero=True)
def triangle(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """Depends on the place in the matrix."""
    return (*recorder.dims(input)[:-2], *fixed_dims(out, recorder.freeze_all([input], "a triangle of a matrix"))[-2:])


@rule("unfold", "unfold_copy", keeps_zero=True)
def unfold(recorder: Recorder, out: Tensor, input: Tensor, dimension: int, **_: Any) -> Dims:
    """Windows along one dim: its positions must stay."""
    dims, reason = list(recorder.dims(input)), recorder.reason("cut into windows")
    recorder.labels.freeze(dims[dimension], reason)
    dims[dimension] = Fixed(reason)
    return (*dims, Fixed(reason))


@rule("im2col", "col2im", "diagonal", "diagonal_copy", "rot90", "as_strided", "repeat_interleave", keeps_zero=True)
def by_place(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """Movement that depends on literal sizes: what it touches stays."""
    return fixed_dims(out, recorder.freeze_all([input], f"moved by {recorder.operator} with literal sizes"))
