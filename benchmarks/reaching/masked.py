"""Whether a model that any tool has made smaller equals the dense one with what went set to zero.

The tool's own account of what went is not asked for. It does the same once more to a twin, in whose tensors every number is its
own position; what is left there says which positions stayed.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from models.large import Inputs
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.torch.capture import call
from secateur.torch.structure import tensors_in

TOLERANCE = 1e-8
"""In float64, of the largest output; what rounding does stays below 1e-11."""

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True, slots=True)
class Equality:
    """What came out.

    Attributes:
        error: The largest difference, in shares of the largest output; None where zero and gone are not the same.
        equal: Whether the error is rounding, or nothing can be said.
        unchecked: Why nothing can be said.
    """

    error: float | None
    equal: bool
    unchecked: str | None = None


class UncheckedError(Exception):
    """Zero and gone cannot be compared, for the reason that the message gives."""


def number(model: nn.Module) -> None:
    """Make every number of a model its own position in its tensor, as the bits of an integer; whole numbers stay."""
    with torch.no_grad():
        for _, tensor in named_tensors(model):
            tensor.copy_(torch.arange(tensor.numel(), dtype=INTEGERS[tensor.dtype]).view(tensor.dtype).view_as(tensor))


def equality(dense: nn.Module, small: nn.Module, twin: nn.Module, inputs: Inputs) -> Equality:
    """Compare the smaller model with the masked one, in float64.

    Args:
        dense: The model before anything was removed.
        small: What a tool made of it.
        twin: What the tool made of a numbered copy of it.
        inputs: One call's.
    """
    try:
        positions = left_positions(dense, small, twin)
        generic, given = lively(dense, inputs), in_double(inputs)
        expected, widths = watched(zeroed(generic, positions), given)
        found, own_widths = watched(filled(small, generic, positions), given)
    except UncheckedError as reason:
        return Equality(None, True, str(reason))
    except Exception as error:  # noqa: BLE001 - the model runs as it is; that it does not in float64 is no fault of the tool
        return Equality(None, True, f"does not run in float64: {' '.join(str(error).split())[:150]}")
    if [t.shape for t in expected] != [t.shape for t in found]:
        return Equality(None, True, "outputs became smaller")
    error = difference(expected, found)
    if error <= TOLERANCE:
        return Equality(error, True)
    changed = next((op for op, own in zip(widths, own_widths, strict=False) if op != own), None)
    if changed or len(widths) != len(own_widths):
        return Equality(None, True, f"{changed[0] if changed else 'the way'} depends on how many there are")
    return Equality(error, False)


def left_positions(dense: nn.Module, small: nn.Module, twin: nn.Module) -> dict[str, Tensor]:
    """Of each tensor of floating point numbers of the smaller model, where its numbers stood in the dense one, int64."""
    before, after, left = dict(named_tensors(dense)), dict(named_tensors(small)), dict(named_tensors(twin))
    if not before.keys() == after.keys() == left.keys():
        raise UncheckedError("tensors have other names")
    if whole_numbers(dense) != whole_numbers(small):
        raise UncheckedError("tensors of whole numbers became smaller")
    positions = {}
    for name, tensor in left.items():
        found = tensor.detach().contiguous().view(INTEGERS[tensor.dtype]).long()
        inside = not found.numel() or 0 <= int(found.min()) <= int(found.max()) < before[name].numel()
        if not inside or not _same(before[name].detach().flatten()[found], after[name].detach()):
            raise UncheckedError(f"{name} was computed anew")
        positions[name] = found
    return positions


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num())


def lively(dense: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy in float64 whose outputs depend on all of it: no parameter is constant, no batch norm lets a signal fade."""
    model = copy.deepcopy(dense).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() and parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad(), suppress(ValueError):  # a batch norm of a single value has no statistics
        call(model, in_double(inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model


def zeroed(model: nn.Module, positions: Mapping[str, Tensor]) -> nn.Module:
    """A copy with zero at all positions that are not left."""
    masked = copy.deepcopy(model)
    masks: dict[int, Tensor] = {}
    for name, tensor in named_tensors(masked):
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        mask[positions[name].flatten()] = True
        if not torch.equal(masks.setdefault(id(tensor), mask), mask):
            raise UncheckedError(f"{name} is no longer shared")
    for _, tensor in named_tensors(masked):
        tensor.data = tensor.data * masks[id(tensor)].view_as(tensor)
    return masked


def filled(small: nn.Module, model: nn.Module, positions: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the smaller model in float64, with the numbers of the other at the positions that are left."""
    copied, dense = copy.deepcopy(small).double(), dict(named_tensors(model))
    for name, tensor in named_tensors(copied):
        tensor.data = dense[name].detach().flatten()[positions[name]].clone()
    return copied


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference, in shares of the largest number of each tensor."""
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        left, right = left.double().nan_to_num(), right.double().nan_to_num()
        if left.numel():
            worst = max(worst, float((left - right).abs().max() / left.abs().max().clamp(min=1e-30)))
    return worst


def watched(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], list[tuple[str, Any]]]:
    """The outputs of a call, and the sizes of all that its operators count, weigh or order; the same random numbers each time."""
    torch.manual_seed(0)
    with torch.no_grad(), _Widths({place(parameter) for parameter in model.parameters()}) as widths:
        return tensors_in(call(model, inputs)), widths.seen


NEUTRAL = (
    *("convolution", "_convolution", "cudnn_batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"),
    *(
        "embedding",
        "cat",
        "stack",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
    ),
    *("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *(
        "avg_pool2d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "grid_sampler_2d",
        "permute",
    ),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "transpose", "prelu", "lift_fresh", "arange"),
    *(
        "expand",
        "repeat",
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "eye",
        "linspace",
        "copy",
    ),
    *(
        "where",
        "index_put",
        "slice_scatter",
        "select_scatter",
        "empty_like",
        "reshape",
        "is_same_size",
        "empty_strided",
    ),
    *("new_empty", "new_empty_strided", "randn", "rand", "scalar_tensor", "_local_scalar_dense", "split_copy"),
    *("_to_copy", "clone", "detach", "alias", "fill", "zero", "zeros_like", "ones_like", "full_like", "_unsafe_view"),
)
"""Operators in which zero and gone are the same, or that look at no value: linear in what may go, or one number at a time."""

PRODUCTS = ("mm", "bmm", "addmm", "addbmm", "baddbmm")
"""The same holds for these where one factor is a parameter."""


class _Widths(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes for each operator that is not neutral the sizes that go into its result."""

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = parameters
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2].removesuffix("_")
        one_by_one = torch.Tag.pointwise in func.tags or func.is_view
        if name not in NEUTRAL and not one_by_one:
            named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
            if name not in PRODUCTS or not any(place(leaf) in self.parameters for leaf in args):
                self.seen.append((name, _counted(name, named)))
        return func(*args, **kwargs)


def _counted(name: str, named: Mapping[str, Any]) -> Any:
    """The sizes that one operator sums or orders over; all sizes, where that is not known."""
    tensors = [value for value in named.values() if isinstance(value, Tensor)]
    dims = named.get("dim", named.get("dims"))
    if name in PRODUCTS:
        return tensors[-1].shape[-2]
    if name == "constant_pad_nd":
        pad = named["pad"]
        dims = [-1 - i // 2 for i in range(len(pad)) if pad[i]]
    if not tensors or dims is None or not tensors[0].ndim:
        return [tuple(t.shape) for t in tensors]
    return [tensors[0].shape[d] for d in ([dims] if isinstance(dims, int) else dims or range(tensors[0].ndim))]


def place(value: object) -> int:
    """What tells whether two tensors have the same numbers."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0


def in_double(inputs: Inputs) -> Any:
    """The inputs, with floating point numbers in float64."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of floating point numbers, under all of their names."""
    for named in (model.named_parameters, model.named_buffers):
        yield from ((name, tensor) for name, tensor in named(remove_duplicate=False) if tensor.dtype in INTEGERS)


def whole_numbers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the other buffers."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_buffers() if tensor.dtype not in INTEGERS}
