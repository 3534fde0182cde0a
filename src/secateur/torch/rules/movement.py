"""Data movement: labels move as the data do, dim by dim; only a reshape has to look at them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.axes import ONE, Dim, Dims, Fixed, Role
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import fixed_dims, movement, rule

_BROADCASTS = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "matmul __matmul__ __rmatmul__ bmm einsum tensordot linear scaled_dot_product_attention expand_as "
        "broadcast_tensors meshgrid normalize"
    ).split()
)
"""Functions that repeat a dim for the sake of another tensor, to which it is tied afterwards."""


@movement("clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "to", "positive")
@movement("conj", "_conj", "resolve_conj", "resolve_neg", "flip")
@rule("feature_dropout", keeps_zero=True)
def same(recorder: Recorder, out: Tensor, input: Tensor, dims: Sequence[int] = (), **_: Any) -> Dims:
    """The same positions; a flip reverses them."""
    found = list(recorder.dims(input))
    for d in dims:
        dim = found[d]
        found[d] = dim if isinstance(dim, Fixed) else np.ascontiguousarray(dim[:, ::-1])
    return tuple(found)


@movement("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy", "view_copy")
def view(recorder: Recorder, out: Tensor, input: Tensor, size: list[int] | None = None, **_: Any) -> Dims:
    """Row-major reshape."""
    if size is None:
        return recorder.dims(input)
    reason = recorder.reason("split or merged unevenly by a view")
    dims = recorder.labels.reshape(recorder.dims(input), tuple(input.shape), tuple(out.shape), reason)
    for given, n, dim in zip(size, out.shape, dims, strict=True):
        recorder.size(given, ONE if n == 1 or given == -1 else dim)
    return dims


@movement("permute", "permute_copy")
def permute(recorder: Recorder, out: Tensor, input: Tensor, dims: list[int], **_: Any) -> Dims:
    """Dims in another order."""
    found = recorder.dims(input)
    return tuple(found[d] for d in dims)


@movement("transpose", "transpose_copy", "swapaxes")
def transpose(recorder: Recorder, out: Tensor, input: Tensor, dim0: int, dim1: int, **_: Any) -> Dims:
    """Two dims swapped."""
    found = list(recorder.dims(input))
    if found:
        found[dim0], found[dim1] = found[dim1], found[dim0]
    return tuple(found)


@movement("t", "t_copy", "numpy_T", "mT")
def t(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """A matrix transposed."""
    return tuple(reversed(recorder.dims(input)))


@movement("unsqueeze", "unsqueeze_copy")
def unsqueeze(recorder: Recorder, out: Tensor, input: Tensor, dim: int, **_: Any) -> Dims:
    """A new dim of size 1."""
    found = list(recorder.dims(input))
    found.insert(dim % (len(found) + 1), ONE)
    return tuple(found)


@movement("squeeze", "squeeze_copy")
def squeeze(recorder: Recorder, out: Tensor, input: Tensor, dim: Any = None, **_: Any) -> Dims:
    """Dims of size 1 dropped."""
    dims = recorder.dims(input)
    named = range(len(dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    drop = {d % len(dims) for d in named if dims and dims[d] is ONE}
    return tuple(found for d, found in enumerate(dims) if d not in drop)


@movement("expand", "expand_copy")
def expand(recorder: Recorder, out: Tensor, input: Tensor, size: list[int], **_: Any) -> Dims:
    """A dim of size 1 repeated: each repetition is as good as another, so it gets labels of its own."""
    found = (ONE,) * (out.ndim - input.ndim) + recorder.dims(input)
    before = (1,) * (out.ndim - input.ndim) + tuple(input.shape)
    dims: list[Dim] = []
    for given, old, new, dim in zip(size, before, out.shape, found, strict=True):
        repeated = recorder.labels.fresh(new) if old == 1 and new > 1 else dim
        if repeated is not dim:
            recorder.roles.mark(Role.REPEATED, repeated)
        expression = recorder.size(given, repeated if given != -1 else ONE)
        if expression is None and repeated is not dim and recorder.sizes.name not in _BROADCASTS:
            recorder.labels.freeze(repeated, recorder.reason(f"{recorder.sizes.name} decides how many"))
        dims.append(repeated)
    return tuple(dims)


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


@movement("repeat", "tile")
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
        elif times > 1 and dim.order is None:
            dim = _copies(recorder, times, n, dim)
        dims.append(dim)
    return tuple(dims)


def _copies(recorder: Recorder, times: int, size: int, dim: Dim) -> Dim:
    """A dim that none of whose positions can go, several times: a copy of it can, where a size says how many there are."""
    copies = recorder.labels.fresh(times)
    expression = recorder.size(times, copies)
    if expression is None or isinstance(expression, int) or not isinstance(copies, np.ndarray):
        return dim
    recorder.roles.mark(Role.REPEATED, copies)
    return np.repeat(copies, size // times, axis=1)


@rule("tril", "triu", keeps_zero=True)
def triangle(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """Depends on the place in the matrix."""
    return (*recorder.dims(input)[:-2], *fixed_dims(out, recorder.freeze_all([input], "a triangle of a matrix"))[-2:])


@rule("view_as_complex", "view_as_complex_copy", keeps_zero=True)
def view_as_complex(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """The last dim is the real and the imaginary part of one number."""
    *dims, parts = recorder.dims(input)
    recorder.labels.freeze(parts, recorder.reason("the two parts of a complex number"))
    return tuple(dims)


@rule("view_as_real", "view_as_real_copy", keeps_zero=True)
def view_as_real(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """A last dim for the real and the imaginary part."""
    return (*recorder.dims(input), Fixed(recorder.reason("the two parts of a complex number")))


@rule("as_strided", keeps_zero=True)
def as_strided(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Any:
    """Torch's own pooling lays an image out anew; in the code of a model, strides are literal sizes."""
    own = not recorder.sizes.name.startswith("as_strided")
    return recorder.dims(input) if own and len(recorder.dims(input)) == out.ndim else by_place(recorder, out, input)


@rule("im2col", "col2im", "diagonal", "diagonal_copy", "rot90", "repeat_interleave", keeps_zero=True)
def by_place(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """Movement that depends on literal sizes: what it touches stays."""
    return fixed_dims(out, recorder.freeze_all([input], f"moved by {recorder.operator} with literal sizes"))
