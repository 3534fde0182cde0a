"""Normalisations: batch norm leaves channels independent; the others run a statistic over what they normalise."""

from typing import Any

from torch import Tensor

from secateur.axes import ONE, Dim, Dims, Role
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import rule


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
@rule("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "batch_norm")
def batch_norm(
    recorder: Recorder, out: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, **arguments: Any
) -> list[Dims]:
    """Input `[n, c, ...]`; everything else is `[c]`. A statistic of the input itself runs over all dims but `c`."""
    dims = recorder.dims(input)
    own = arguments.get("running_mean") is None or recorder.operator == "_batch_norm_with_update"
    for dim in (dims[0], *dims[2:]) if own or arguments.get("training") else ():
        recorder.labels.mark_normalised(dim)
    for other in (weight, bias, arguments.get("running_mean"), arguments.get("running_var")):
        if other is not None:
            recorder.labels.tie(dims[1], recorder.dims(other)[0], recorder.reason("tied"))
    recorder.result_zero = _affine_zero(recorder, weight, bias)
    first = out[0] if isinstance(out, (tuple, list)) else out
    extra = [] if first is out else [dims[1:2] if t.numel() else (ONE,) * t.ndim for t in out[1:]]
    return [dims, *extra]


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(
    recorder: Recorder,
    out: Any,
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    **arguments: Any,
) -> list[Dims]:
    """A statistic over the last dims; weight and bias have their shape."""
    dims = recorder.dims(input)
    last = dims[len(dims) - len(normalized_shape) :]
    for size, dim in zip(normalized_shape, last, strict=True):
        recorder.labels.mark_normalised(dim)
        recorder.size(size, dim)
    for other in (weight, arguments.get("bias")):
        if other is not None:
            for ours, theirs in zip(last, recorder.dims(other), strict=True):
                recorder.labels.tie(ours, theirs, recorder.reason("tied"))
    recorder.result_zero = _affine_zero(recorder, weight, arguments.get("bias"))
    statistic = tuple(dims[: len(dims) - len(last)])
    return [dims, *(_like(t, statistic, recorder) for t in (out[1:] if isinstance(out, tuple) else ()))]


@rule("native_group_norm", "group_norm")
def group_norm(
    recorder: Recorder, out: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, **a: Any
) -> list[Dims]:
    """Input `[n, groups * i, ...]`: a statistic within each group, so groups must stay equally large."""
    dims, groups = recorder.dims(input), int(a["group"] if "group" in a else a["num_groups"])
    group: Dim = ONE
    within = dims[1]
    if groups > 1:
        sizes = (groups, input.shape[1] // groups)
        group, within = recorder.labels.split_square(dims[1], sizes, recorder.reason("a group norm"))
        recorder.size(groups, group)
        recorder.roles.mark(Role.GROUPED, group)
    recorder.labels.mark_normalised(within)
    for other in (weight, bias):
        if other is not None:
            recorder.labels.tie(dims[1], recorder.dims(other)[0], recorder.reason("tied"))
    recorder.result_zero = _affine_zero(recorder, weight, bias)
    return [dims, *((dims[0], group) for _ in (out[1:] if isinstance(out, tuple) else ()))]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(recorder: Recorder, out: Tensor, input: Tensor, dim: int, **_: Any) -> Dims:
    """A statistic along `dim`."""
    dims = recorder.dims(input)
    if dims:
        recorder.labels.mark_normalised(dims[dim])
        recorder.roles.softmax(input, dims[dim])
    return dims


@rule("_weight_norm_interface")
def weight_norm(recorder: Recorder, out: Any, v: Tensor, g: Tensor, dim: int = 0, **_: Any) -> list[Dims]:
    """`g * v / |v|`, with the norm over all dims of `v` but `dim`; masked positions of `v` are zero and add nothing."""
    dims = recorder.dims(v)
    recorder.result_zero = recorder.zero(g)
    recorder.spare(v, dim)
    for d, (ours, theirs) in enumerate(zip(dims, recorder.dims(g), strict=True)):
        if d == dim:
            recorder.labels.tie(ours, theirs, recorder.reason("tied"))
        else:
            recorder.sum_over(ours, exact=recorder.zero(v))
    return [dims, recorder.dims(g)]


def _affine_zero(recorder: Recorder, weight: Tensor | None, bias: Tensor | None) -> bool:
    """A normalised value is anything; zero comes from a zero weight and bias."""
    return weight is not None and recorder.zero(weight) and (bias is None or recorder.zero(bias))


def _like(tensor: Tensor, dims: Dims, recorder: Recorder) -> Dims:
    if len(dims) <= tensor.ndim:
        return (*dims, *recorder.dims(tensor)[len(dims) :])
    return recorder.dims(tensor)
