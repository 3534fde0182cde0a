"""Which model is it? What of a model can be saved, and whether a model is the one that a plan or an artefact speaks of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.artefact.manifest import Artefact
from secateur.axes import AttributeChange, Plan
from secateur.errors import ArtefactError
from secateur.torch.graph import graph_of
from secateur.torch.settings import integers_of
from secateur.torch.state import state_of


def storable_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, with the very tensors of the model.

    Raises:
        ArtefactError: It holds what a file of plain tensors cannot hold.
    """
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        reason = _unstorable(value)
        if reason is not None:
            raise ArtefactError(f"{name} of {class_name(model)} cannot be part of an artefact: {reason}")
    return state


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights, with the versions of the modules' own formats, which some ask for, as the model states them."""
    state = model.state_dict()
    state.clear()
    state.update(weights)  # the dict has `_metadata`
    model.load_state_dict(state, strict=True)


def ties_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each further name of one and the same tensor, its first name."""
    first: dict[int, str] = {}
    return {name: first[id(tensor)] for name, tensor in state.items() if first.setdefault(id(tensor), name) != name}


def plan_not_applied(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Where the model's tensors have not the shapes that the plan leads to."""
    tensors = state_of(model, each_name=True)
    for cut in plan.tensors:
        if cut.name not in tensors:
            yield f"{cut.name} is missing in the model"
        elif not cut.fits(shape := _shape(tensors[cut.name]), _is_parameter(tensors[cut.name]), after=True):
            yield f"{cut.name} has shape {shape} in the model, the plan leads to {cut.shape_after}"


def plan_complaints(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Where a dense model is not the one that the plan was made for."""
    tensors = state_of(model, each_name=True)
    for name, tensor in tensors.items():
        if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
            yield f"{name} is on the meta device or has no shape yet; it needs memory to load into"
    for cut in plan.tensors:
        if cut.name not in tensors:
            yield f"{cut.name} is missing in the model"
        elif not cut.fits(shape := _shape(tensors[cut.name]), _is_parameter(tensors[cut.name])):
            yield f"{cut.name} has shape {shape} in the model, {cut.shape} in the plan"
    for change in plan.attributes:
        if not any(f"{change.module}.".startswith(f"{path}.") for path in plan.opened):  # their open form has its own
            yield from _attribute_complaints(model, change)


def state_complaints(state: Mapping[str, Tensor], artefact: Artefact) -> Iterator[str]:
    """Where a compact model's state dict is not what the artefact holds."""
    shapes, ties = artefact.shapes, ties_of(state)
    yield from (f"{name} is missing in the model" for name in shapes if name not in state)
    yield from (f"{name} is missing in the artefact" for name in state if name not in shapes)
    for name in (name for name in state if name in shapes):
        if tuple(state[name].shape) != shapes[name]:
            yield f"{name} has shape {tuple(state[name].shape)} in the pruned model, {shapes[name]} in the artefact"
        if ties.get(name) != artefact.ties.get(name):
            yield f"{name} is tied to {ties.get(name, 'none')} in the model, to {artefact.ties.get(name, 'none')} in the artefact"
        if name in artefact.tensors and not _converts(artefact.tensors[name].dtype, state[name].dtype):
            yield f"{name} is {dtype_name(state[name].dtype)} in the model, {artefact.tensors[name].dtype} in the artefact"


def class_name(model: nn.Module) -> str:
    """Module and name of the model's class; of a graph form, those of the model that it is the graph of."""
    return graph_of(model) or f"{type(model).__module__}.{type(model).__qualname__}"


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def listed(items: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    shown = "; ".join(items[:5])
    return shown if len(items) <= 5 else f"{shown}; and {len(items) - 5} more"


def _unstorable(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"it is of {type(value).__name__}, no tensor; give it to save(..., extra=...) instead"
    if torch.nn.parameter.is_lazy(value):
        return "it has no shape yet; run the model once"
    if value.is_meta:
        return "it is on the meta device and has no values; move the model with to_empty and fill it"
    if value.layout is not torch.strided or value.is_quantized or type(value.data) is not Tensor:
        return f"it is no plain dense tensor ({value.layout}, {type(value.data).__name__}); convert it to one"
    return None


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _attribute_complaints(model: nn.Module, change: AttributeChange) -> Iterator[str]:
    where = f"{change.module}.{change.name}".lstrip(".")
    try:
        value = integers_of(model.get_submodule(change.module))[change.name, change.index]
    except (AttributeError, KeyError):
        yield f"{where} is missing in the model"
        return
    if value != change.old:
        yield f"{where} is {value} in the model, {change.old} in the plan"


def _converts(stored: str, own: torch.dtype) -> bool:
    """Whether values of a dtype may go into another: the same, or both floating point (complex to complex likewise)."""
    dtype = getattr(torch, stored, None)
    if not isinstance(dtype, torch.dtype):
        return False
    return dtype == own or (dtype.is_floating_point and own.is_floating_point) or (dtype.is_complex and own.is_complex)
