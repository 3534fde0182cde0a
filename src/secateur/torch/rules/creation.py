"""Tensors from nothing: uniform ones take part in whatever axis they meet, provided their size can follow."""

from typing import Any

from torch import Tensor

from secateur.axes import Dim, Dims
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import rule


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros.names")
@rule("empty_strided", "new_empty_strided")
def uniform(recorder: Recorder, out: Tensor, input: Tensor | None = None, **_: Any) -> Dims:
    """The same number everywhere: each position is as good as another."""
    recorder.result_zero = "zeros" in recorder.operator
    dims: list[Dim] = []
    for n in out.shape:
        dim = recorder.labels.fresh(n)
        if recorder.size(n, dim) is None:
            recorder.labels.freeze(dim, recorder.reason(f"{recorder.sizes.name} decides how many"))
        dims.append(dim)
    return tuple(dims)


@rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "native_dropout_mask"
)
def like(recorder: Recorder, out: Tensor, input: Tensor, **_: Any) -> Dims:
    """As many positions as the model, for the same units."""
    recorder.result_zero = recorder.operator == "zeros_like"
    return recorder.dims(input)


@rule("arange")
def arange(recorder: Recorder, out: Tensor, end: int, start: int = 0, step: int = 1, **_: Any) -> Dims:
    """Places on a dim of its own, where it counts up a size of the model's."""
    if start != 0 or step != 1 or not isinstance(end, int):
        return recorder.constant(out.shape)
    dim = recorder.labels.fresh(end)
    if recorder.size(end, dim) is None:
        return recorder.constant(out.shape)
    recorder.point(out, dim, recorder.reason("numbers that differ from position to position"))
    return (dim,)


@rule("linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "tril_indices")
@rule("triu_indices", "scalar_tensor")
def distinct(recorder: Recorder, out: Tensor, **_: Any) -> Dims:
    """Numbers that differ from position to position."""
    return recorder.constant(out.shape)


@rule("fill", "zero", "normal", "uniform", "native_dropout", "dropout")
def refill(recorder: Recorder, out: Any, input: Tensor, **_: Any) -> Any:
    """New numbers in an existing tensor."""
    dims = recorder.dims(input)
    dropped = recorder.operator.removesuffix("_") in {"native_dropout", "dropout"}
    recorder.result_zero = recorder.operator.startswith("zero") or (dropped and recorder.zero(input))
    return dims if isinstance(out, Tensor) else [dims] * len(out)
