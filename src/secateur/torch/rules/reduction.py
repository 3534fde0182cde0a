"""Reductions and scans: a sum over units is exact, any other statistic is not, and what depends on their order freezes them."""

from typing import Any

from torch import Tensor

from secateur.axes import ONE, Dim, Dims
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import Result, fixed_dims, rule


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
    for tensor in out:
        if not tensor.is_floating_point():
            recorder.freeze_if_used(tensor, which, recorder.reason("the position of a value among these units"))
    return list(results)


@rule("argmax", "argmin", "sort", "topk", "kthvalue", "mode", keeps_zero=True)
@rule("cumsum", "cumprod", "cummax", "cummin", keeps_zero=True)
@rule("logcumsumexp", "diff", "_fft_c2c", "_fft_r2c", "_fft_c2r", "trapezoid")
def along(recorder: Recorder, out: Any, input: Tensor, dim: Any = None, **arguments: Any) -> Result:
    """The result depends on the order of the positions along `dim`: they must stay. Other dims pass through."""
    dims, which = recorder.dims(input), _which(input, dim)
    reason = recorder.reason("an operator that depends on the order of these positions")
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
