"""Operators that multiply and add: they tie what they sum over, and they are what a network costs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.axes import ONE, Comparison, Dim, Dims, Fixed, Operation, Width
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import rule

ALIGNMENT = 16
"""Rows of the operands of a grouped product begin at multiples of so many bytes."""


@rule("mm")
def mm(recorder: Recorder, out: Tensor, input: Tensor, mat2: Tensor, **_: Any) -> Dims:
    """`[m, k] @ [k, n]`."""
    (m, k), (k2, n) = recorder.dims(input), recorder.dims(mat2)
    _sum(recorder, k, k2, input, mat2)
    recorder.contraction((*input.shape, mat2.shape[1]), (m, _labelled(k, k2), n))
    recorder.roles.product(input, mat2, m, _labelled(k, k2), n)
    recorder.result_zero = _zero_along(recorder, m, input) and _zero_along(recorder, n, mat2)
    return m, n


@rule("addmm")
def addmm(recorder: Recorder, out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, **_: Any) -> Dims:
    """`bias + [m, k] @ [k, n]`."""
    dims = mm(recorder, out, mat1, mat2)
    assert isinstance(dims, tuple)
    return _plus(recorder, dims, input)


@rule("bmm")
def bmm(recorder: Recorder, out: Tensor, input: Tensor, mat2: Tensor, **_: Any) -> Dims:
    """`[b, m, k] @ [b, k, n]`."""
    (b, m, k), (b2, k2, n) = recorder.dims(input), recorder.dims(mat2)
    b = recorder.labels.tie(b, b2, recorder.reason("tied"))
    _sum(recorder, k, k2, input, mat2)
    recorder.contraction((*input.shape, mat2.shape[2]), (b, m, _labelled(k, k2), n))
    recorder.roles.product(input, mat2, m, _labelled(k, k2), n, b)
    batch_zero = isinstance(b, Fixed) or recorder.zero(input) or recorder.zero(mat2)
    recorder.result_zero = batch_zero and _zero_along(recorder, m, input) and _zero_along(recorder, n, mat2)
    return b, m, n


@rule("_grouped_mm", follows=True)
def grouped_mm(
    recorder: Recorder, out: Tensor, input: Tensor, mat2: Tensor, offs: Tensor | None = None, **_: Any
) -> Dims:
    """`[m, k] @ [groups, k, n]`, where `offs` says which rows go with which group: a mixture of experts."""
    if input.ndim != 2 or mat2.ndim != 3:
        raise ValueError(f"a grouped product of {input.ndim} and {mat2.ndim} dims")
    (m, k), (groups, k2, n) = recorder.dims(input), recorder.dims(mat2)
    recorder.used(input, mat2)
    counted = recorder.pointee(offs, "ends") if offs is not None else None
    if offs is None or counted is None:
        recorder.freeze_all([] if offs is None else [offs], "how many rows each expert gets")
        recorder.labels.freeze(groups, recorder.reason("experts: rows are sent to them by number"))
    else:
        for dim in (counted, recorder.dims(offs)[0]):
            recorder.labels.tie(groups, dim, recorder.reason("tied"))
    _sum(recorder, k, k2, input, mat2)
    recorder.contraction((*input.shape, mat2.shape[2]), (m, _labelled(k, k2), n))
    recorder.roles.product(input, mat2, m, _labelled(k, k2), n, groups)
    recorder.result_zero = _zero_along(recorder, m, input) and _zero_along(recorder, n, mat2)
    step = ALIGNMENT // input.element_size()
    for dim in (_labelled(k, k2), n):
        if isinstance(dim, np.ndarray):
            text = f"{recorder.where()}: torch wants the widths of a grouped product in multiples of {step}"
            recorder.run.limits.append(Comparison("==", Operation("%", Width(dim), step), 0, True, text))
    return m, n


@rule("baddbmm")
def baddbmm(recorder: Recorder, out: Tensor, input: Tensor, batch1: Tensor, batch2: Tensor, **_: Any) -> Dims:
    """`input + [b, m, k] @ [b, k, n]`."""
    dims = bmm(recorder, out, batch1, batch2)
    assert isinstance(dims, tuple)
    return _plus(recorder, dims, input)


@rule("mv")
def mv(recorder: Recorder, out: Tensor, input: Tensor, vec: Tensor, **_: Any) -> Dims:
    """`[m, k] @ [k]`."""
    (m, k), (k2,) = recorder.dims(input), recorder.dims(vec)
    _sum(recorder, k, k2, input, vec)
    recorder.contraction(input.shape, (m, _labelled(k, k2)))
    recorder.roles.product(input, vec, m, _labelled(k, k2), ONE)
    recorder.result_zero = _zero_along(recorder, m, input)
    return (m,)


@rule("addmv")
def addmv(recorder: Recorder, out: Tensor, input: Tensor, mat: Tensor, vec: Tensor, **_: Any) -> Dims:
    """`input + [m, k] @ [k]`."""
    dims = mv(recorder, out, mat, vec)
    assert isinstance(dims, tuple)
    return _plus(recorder, dims, input)


@rule("dot", "vdot")
def dot(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """`[k] @ [k]`."""
    other = arguments.get("tensor", arguments.get("other"))
    assert isinstance(other, Tensor)
    (k,), (k2,) = recorder.dims(input), recorder.dims(other)
    _sum(recorder, k, k2, input, other)
    recorder.contraction(input.shape, (_labelled(k, k2),))
    recorder.roles.product(input, other, ONE, _labelled(k, k2), ONE)
    return ()


@rule("convolution", "_convolution")
def convolution(
    recorder: Recorder,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
    **_: Any,
) -> Dims:
    """Any rank: input `[n, groups * i, ...]`, weight `[groups * o, i, ...]`, or `[groups * i, o, ...]` if transposed.

    Along an image axis where the window is one pixel, it is pointwise.
    """
    x, w, labels = recorder.dims(input), recorder.dims(weight), recorder.labels
    kernel = weight.shape[2:]
    pointwise = [
        window == (1, 1, 0) for window in zip(kernel, _each(stride, kernel), _each(padding, kernel), strict=True)
    ]
    for dim in (*[d for d, passes in zip(x[2:], pointwise, strict=True) if not passes], *w[2:]):
        labels.freeze(dim, recorder.reason("the window of a convolution"))
    groups_dim, first, second = _by_group(recorder, w, weight, groups)
    ins, outs = (first, second) if transposed else (second, first)
    whole = labels.reshape(
        (groups_dim, ins), (groups, _size(input, groups)), (input.shape[1],), recorder.reason("grouped")
    )
    labels.tie(x[1], whole[0], recorder.reason("tied"))
    _mark_sum(recorder, ins, input, weight)
    channels = w[0]
    if transposed:
        sizes = (groups, weight.shape[1])
        channels = labels.reshape((groups_dim, outs), sizes, (out.shape[1],), recorder.reason("grouped"))[0]
    pixels = input.shape[2:] if transposed else out.shape[2:]
    fixed = Fixed(recorder.reason("an image axis"))
    spatial = tuple(d if passes else fixed for d, passes in zip(x[2:], pointwise, strict=True))
    recorder.size(groups, groups_dim)
    recorder.contraction(
        (groups, _size(input, groups), out.shape[1] // groups, *pixels),
        (groups_dim, ins, outs, *spatial),
        factor=out.shape[0] * math.prod(kernel),
    )
    several = groups > 1 and weight.shape[1] > 1 and weight.shape[0] > groups
    recorder.roles.convolution(x[1], channels, groups_dim if several else None)
    dims = (x[0], channels, *spatial)
    recorder.result_zero = recorder.zero(weight) and (bias is None or recorder.zero(bias))
    if any(isinstance(dim, np.ndarray) for dim in spatial):
        recorder.result_zero = recorder.result_zero and bias is None and recorder.zero(input)
    if bias is not None:
        labels.tie(channels, recorder.dims(bias)[0], recorder.reason("tied"))
    return dims


def _by_group(recorder: Recorder, w: Dims, weight: Tensor, groups: int) -> tuple[Dim, Dim, Dim]:
    """The weight's first dim as (group, within the group), and its second dim."""
    if groups == 1:
        return Fixed(recorder.reason("one group")), w[0], w[1]
    sizes = (groups, weight.shape[0] // groups)
    group, within = recorder.labels.split_square(w[0], sizes, recorder.reason("a grouped convolution"))
    return group, within, w[1]


def _each(numbers: Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
    return numbers if len(numbers) == len(kernel) else [*numbers] * len(kernel)


def _size(input: Tensor, groups: int) -> int:
    return input.shape[1] // groups


def _sum(recorder: Recorder, left: Dim, right: Dim, a: Tensor, b: Tensor) -> None:
    recorder.labels.tie(left, right, recorder.reason("tied"))
    _mark_sum(recorder, left, a, b)


def _mark_sum(recorder: Recorder, dim: Dim, a: Tensor, b: Tensor) -> None:
    recorder.sum_over(dim, exact=recorder.zero(a) or recorder.zero(b))


def _zero_along(recorder: Recorder, dim: Dim, operand: Tensor) -> bool:
    """Whether what is removed of `dim` comes out as zero: nothing can be, or it is zero in the operand."""
    return isinstance(dim, Fixed) or recorder.zero(operand)


def _labelled(left: Dim, right: Dim) -> Dim:
    return left if isinstance(left, np.ndarray) else right


def _plus(recorder: Recorder, dims: Dims, added: Tensor) -> Dims:
    """Tie what is added to a product, aligned at the last dim."""
    theirs = recorder.dims(added)
    recorder.result_zero = bool(recorder.result_zero) and recorder.zero(added)
    for offset in range(1, len(theirs) + 1):
        if added.shape[-offset] != 1:
            recorder.labels.tie(dims[-offset], theirs[-offset], recorder.reason("tied"))
    return dims
