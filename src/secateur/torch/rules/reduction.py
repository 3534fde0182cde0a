"""Reductions and scans: a sum over units is exact, any other statistic is not, and what depends on their order freezes them."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from secateur.axes import ONE, Comparison, Dim, Dims, Fixed, Role, Width
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import Result, fixed_dims, rule

ORDER = "an operator that depends on the order of these positions"
PLACE = "the position of a value among these units"


@rule("sum", "linalg_vector_norm", "norm", "count_nonzero", "nansum", keeps_zero=True)
def total(recorder: Recorder, out: Tensor, input: Tensor, **arguments: Any) -> Dims:
    """Zeros add nothing, so removing equals zeroing."""
    exact = recorder.zero(input) and float(arguments.get("ord", 2) or 0) > 0
    if "norm" in recorder.operator:
        for d in set(range(input.ndim)) - _which(input, arguments.get("dim")):
            recorder.spare(input, d)
    return _reduced(recorder, out, input, arguments, exact)


@rule("logsumexp", "all")
@rule("mean", "var", "std", "amax", "amin", "prod", "any", "median", "nanmedian", keeps_zero=True)
@rule("max", "min", "aminmax", "var_mean", "std_mean", keeps_zero=True)
def statistic(recorder: Recorder, out: Any, input: Tensor, **arguments: Any) -> Result:
    """Does not depend on the order of the units, but on their number or on zeros among them."""
    if isinstance(out, Tensor):
        return _reduced(recorder, out, input, arguments, exact=False)
    results = [_reduced(recorder, tensor, input, arguments, exact=False) for tensor in out]
    which = [recorder.dims(input)[d] for d in _which(input, arguments.get("dim"))]
    for tensor, dim in product(out, which):
        if not tensor.is_floating_point():
            recorder.point(tensor, dim, recorder.reason(PLACE))
    return list(results)


@rule("argmax", "argmin")
def place_of_extreme(recorder: Recorder, out: Tensor, input: Tensor, dim: int | None = None, **arguments: Any) -> Dims:
    """The place of the largest value along `dim`."""
    if dim is None:
        return fixed_dims(out, recorder.freeze_all([input], PLACE))
    recorder.point(out, recorder.dims(input)[dim], recorder.reason(PLACE))
    return _reduced(recorder, out, input, {"dim": dim}, exact=False)


@rule("topk")
def topk(recorder: Recorder, out: Sequence[Tensor], input: Tensor, k: int, dim: int = -1, **_: Any) -> Result:
    """The `k` largest values along `dim` and their places: at least so many units must stay."""
    dims, reason = list(recorder.dims(input)), recorder.reason("the largest of several units")
    chosen_from, dims[dim] = dims[dim], Fixed(reason)
    if isinstance(chosen_from, np.ndarray):
        recorder.sum_over(chosen_from, exact=False)
        recorder.roles.mark(Role.CHOSEN, chosen_from)
        text = f"{recorder.where()}: the {k} largest are chosen from as many units"
        recorder.run.limits.append(Comparison(">=", Width(chosen_from), k, True, text))
    recorder.point(out[1], chosen_from, recorder.reason(PLACE))
    return [tuple(dims)] * 2


@rule("sort", follows=True)
def sort(recorder: Recorder, out: Sequence[Tensor], input: Tensor, dim: int = -1, **_: Any) -> Result:
    """The values put in order, and where each was; places by the order of the dim that they are on."""
    order = recorder.pointee(input)
    if order is None:
        recorder.used(input)
        return along(recorder, out, input, dim)
    recorder.moved(input, out[:1])
    dims = list(recorder.dims(input))
    recorder.labels.freeze(dims[dim], recorder.reason(ORDER))
    dims[dim] = Fixed(recorder.reason(ORDER), order)
    return [tuple(dims)] * 2


@rule("histc", follows=True)
def histc(recorder: Recorder, out: Tensor, input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Dims:
    """How many values there are of each: of places on a dim, how often each position is meant."""
    dim, counted = recorder.labels.fresh(bins), recorder.pointee(input)
    if counted is None or min != 0 or max != bins - 1 or len(counted[0]) != bins:
        return fixed_dims(out, recorder.freeze_all([input], "counted by the range that a value lies in"))
    if recorder.size(bins, dim) is None or recorder.size(int(max), dim, less=1) is None:
        recorder.labels.freeze(dim, recorder.reason("histc decides how many"))
    for own in recorder.dims(input):
        if isinstance(own, np.ndarray):
            recorder.labels.freeze(own, recorder.reason("counted one by one"))
    recorder.labels.tie(dim, counted, recorder.reason("tied"))
    return (dim,)


@rule("cumsum", keeps_zero=True)
def cumsum(recorder: Recorder, out: Tensor, input: Tensor, dim: int, **_: Any) -> Dims:
    """Sums of all positions so far: of counts, the ends of runs, which is all that they may be taken for."""
    recorder.point(out, recorder.dims(input)[dim], recorder.reason(ORDER), "ends")
    return recorder.dims(input)


@rule("kthvalue", "mode", "cumprod", "cummax", "cummin", keeps_zero=True)
@rule("logcumsumexp", "diff", "_fft_c2c", "_fft_r2c", "_fft_c2r", "trapezoid")
def along(recorder: Recorder, out: Any, input: Tensor, dim: Any = None, **arguments: Any) -> Result:
    """The result depends on the order of the positions along `dim`: they must stay. Other dims pass through."""
    dims, which = recorder.dims(input), _which(input, dim)
    reason = recorder.reason(ORDER)
    for d in which:
        recorder.labels.freeze(dims[d], reason)
    outs = [out] if isinstance(out, Tensor) else list(out)
    results = []
    for tensor in outs:
        fixed = fixed_dims(tensor, reason)
        if tensor.ndim == input.ndim:
            results.append(tuple(fixed[d] if d in which else dim for d, dim in enumerate(dims)))
        else:
            left = [dim for d, dim in enumerate(dims) if d not in which]
            results.append(tuple(left) if len(left) == tensor.ndim else fixed)
    return results[0] if isinstance(out, Tensor) else results


def _reduced(recorder: Recorder, out: Tensor, input: Tensor, arguments: dict[str, Any], exact: bool) -> Dims:
    dims, which = recorder.dims(input), _which(input, arguments.get("dim"))
    for d in which:
        recorder.sum_over(dims[d], exact)
    if out.ndim == input.ndim:
        return tuple(ONE if d in which else dim for d, dim in enumerate(dims))
    kept: list[Dim] = [dim for d, dim in enumerate(dims) if d not in which]
    return tuple(kept)


def _which(input: Tensor, dim: Any) -> set[int]:
    """The dims an operator reduces; all of them where none is named."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return set(range(input.ndim))
    named = dim if isinstance(dim, (tuple, list)) else [dim]
    return {int(d) % max(input.ndim, 1) for d in named}
