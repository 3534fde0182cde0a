"""Applies a plan to a model: `mask` (zeros, same shapes) and `compact` (smaller tensors)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.axes import Plan, TensorCut
from secateur.errors import ModelError, PlanError
from secateur.torch.attention import close_nested_paths, open_module
from secateur.torch.capture import Inputs, trace
from secateur.torch.graph import in_form
from secateur.torch.layers import refresh_layer_sizes
from secateur.torch.replicate import replicate
from secateur.torch.settings import OURS, Copies, convert_integers, integers_of
from secateur.torch.stand_in import remove, silence, unsilence
from secateur.torch.state import state_of

_PLAN = f"{OURS}plan"
_MASK = f"{OURS}mask"


def compact(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    form: str = "module",
    example_inputs: Inputs | None = None,
) -> nn.Module:
    """Apply a plan physically: a new module of the same class with smaller tensors.

    Args:
        model: The model the plan was made for; it is not changed.
        plan: What stays.
        optimizer: An optimiser over the parameters of `model`. It is re-pointed, in place, at the parameters of the result, with
            its state (moments) cut alike, so that training goes on.
        form: "module", or "graph" for the smaller model in graph form (see `as_graph`).
        example_inputs: As for `trace`. With them the plan for a graph form may be one for the model itself.

    Returns:
        The smaller model, in the same mode, on the same device, with the same dtypes, hooks, tied weights and gradient flags.

    Raises:
        ModelError: The plan is for another model, or the form is none.
        CaptureError: The model has no graph form.
        PlanError: The optimiser keeps a state that cannot be cut, or is for another form of the model; or the plan removes
            branches of another form.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = sc.trace(model, torch.zeros(1, 4)).plan({"0": range(3)})
        >>> sc.compact(model, plan)[0].weight.shape
        torch.Size([3, 4])
    """
    graph = in_form(model, form, example_inputs)
    if form == "graph" and example_inputs is not None:
        if optimizer is not None and graph is not model:
            raise PlanError("the optimiser trains the model, not its graph form; make one for as_graph(model, inputs)")
        if plan.removal:
            raise PlanError(
                "a plan that removes branches or entries of lists is carried out in the form that it was made in: trace, compact "
                "and load sc.as_graph(model, inputs) itself, without form= and example_inputs="
            )
        return compact(graph, trace(graph, example_inputs).plan_from_tensors(plan.tensors), optimizer)
    cuts = _cuts_by_tensor(model, plan)
    replaced: dict[int, Tensor] = {}

    def smaller(tensor: Tensor) -> Tensor:
        cut = cuts.get(id(tensor))
        result = tensor.detach().clone() if cut is None else cut_tensor(tensor.detach(), cut)
        if isinstance(tensor, nn.Parameter):
            result = nn.Parameter(result, requires_grad=tensor.requires_grad)
        replaced[id(tensor)] = result
        return result

    if optimizer is not None:
        _check_optimizer(optimizer, cuts, model)
    small = replicate(model, smaller)
    _open(small, plan)
    set_attributes(small, plan)
    refresh_layer_sizes(small)
    remove(small, plan.removal)
    previous = plan_of(model)
    small.__dict__[_PLAN] = plan if previous is None else previous.then(plan)
    if optimizer is not None:
        _repoint(optimizer, replaced, cuts)
        _drop(optimizer, {id(tensor) for tensor in replaced.values()} - {id(tensor) for tensor in small.parameters()})
    return small


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Apply a plan reversibly: a copy of the model, same shapes, with zeros wherever a removed unit lives.

    Args:
        model: The model the plan was made for; it is not changed.
        plan: What stays.

    Returns:
        The masked copy; `unmask` gives the dense values back.

    Raises:
        ModelError: The plan is for another model.
    """
    cuts = _cuts_by_tensor(model, plan) | _wholly_masked(model, plan)
    removed: dict[str, Tensor] = {}

    def zeroed(tensor: Tensor) -> Tensor:
        result = tensor.detach().clone()
        cut = cuts.get(id(tensor))
        if cut is not None and isinstance(tensor, nn.Parameter):
            gone = ~unmasked_positions(cut, tensor.device)
            removed[cut.name] = result[gone].clone()
            result[gone] = 0
        return result

    masked = replicate(model, zeroed)
    masked.__dict__[_MASK] = _Mask(plan, removed, silence(masked, plan.removal))
    return masked


def unmask(masked: nn.Module) -> nn.Module:
    """A copy of a masked model with the values back that `mask` took away.

    Raises:
        ModelError: The model was not made by `mask`.
    """
    record = masked.__dict__.get(_MASK)
    if not isinstance(record, _Mask):
        raise ModelError(f"this {type(masked).__name__} was not made by mask(); nothing to give back")
    cuts = _cuts_by_tensor(masked, record.plan) | _wholly_masked(masked, record.plan)

    def restored(tensor: Tensor) -> Tensor:
        result = tensor.detach().clone()
        cut = cuts.get(id(tensor))
        if cut is not None and cut.name in record.removed:
            result[~unmasked_positions(cut, tensor.device)] = record.removed[cut.name].to(result)
        return result

    model = replicate(masked, restored)
    copied = model.__dict__.pop(_MASK, record)  # a copy of a graph comes without it
    for handle in copied.silenced:
        handle.remove()
    unsilence(model, copied.plan.removal)
    return model


@dataclass(frozen=True, slots=True)
class _Mask:
    plan: Plan
    removed: Mapping[str, Tensor]
    silenced: Sequence[RemovableHandle]


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that made this model out of the dense one, or None for a dense model."""
    plan = model.__dict__.get(_PLAN)
    return plan if isinstance(plan, Plan) else None


def cut_tensor(tensor: Tensor, cut: TensorCut) -> Tensor:
    """The positions of a tensor that stay, in the memory layout it had."""
    result = tensor
    for d, kept in enumerate(cut.kept):
        if kept is not None:
            result = result.index_select(d, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if layout is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
        return result.contiguous(memory_format=layout)
    return result.contiguous()


def unmasked_positions(cut: TensorCut, device: torch.device | None = None) -> Tensor:
    """Where masking leaves a tensor's entries as they are: a boolean tensor of the dense shape."""
    stays = torch.ones(cut.shape, dtype=torch.bool, device=device)
    for d, kept in enumerate(cut.kept):
        if kept is not None and d not in cut.spared:
            gone = torch.ones(cut.shape[d], dtype=torch.bool, device=device)
            gone[list(kept)] = False
            stays.index_fill_(d, gone.nonzero().flatten(), False)
    return stays


def set_attributes(model: nn.Module, plan: Plan) -> None:
    """Give the modules the integers of the plan.

    Raises:
        ModelError: A module or attribute of the plan is not there.
    """
    changes: dict[str, dict[tuple[str, int | None], int]] = {}
    for change in plan.attributes:
        changes.setdefault(change.module, {})[change.name, change.index] = change.new
    modules, copies = dict(model.named_modules(remove_duplicate=False)), Copies()
    for path, new in changes.items():
        module = modules.get(path)
        missing = list(new) if module is None else [key for key in new if key not in integers_of(module)]
        if module is None or missing:
            where = f"{path}.{missing[0][0]}".lstrip(".")
            raise ModelError(
                f"the plan sets {where}, which {type(model).__name__} does not have; it is for another model"
            )

        def changed(name: str, index: int | None, value: int, new: Mapping[tuple[str, int | None], int] = new) -> int:
            return new.get((name, index), value)

        convert_integers(module, changed, copies)


def _cuts_by_tensor(model: nn.Module, plan: Plan) -> dict[int, TensorCut]:
    """The plan's cuts by the identity of the model's tensors, with the shapes checked."""
    state, cuts = state_of(model), {}
    for cut in plan.tensors:
        if cut.name not in state:
            raise ModelError(
                f"the plan cuts {cut.name!r}, which {type(model).__name__} does not have; it is for another model"
            )
        if not cut.fits(state[cut.name].shape, whole=isinstance(state[cut.name], nn.Parameter)):
            raise ModelError(
                f"the plan is for {cut.name!r} of shape {list(cut.shape)}, but this {type(model).__name__} has "
                f"{list(state[cut.name].shape)}; trace this model and plan anew"
            )
        cuts[id(state[cut.name])] = cut
    return cuts


def _wholly_masked(model: nn.Module, plan: Plan) -> dict[int, TensorCut]:
    """Cuts of all that the entries of lists hold that go, by the identity of the model's tensors."""
    return {
        id(tensor): TensorCut(name, tuple(tensor.shape), ((),) * tensor.ndim)
        for name, tensor in state_of(model).items()
        if any(name.startswith(f"{path}.") for path in plan.removal.entries)
    }


def _open(model: nn.Module, plan: Plan) -> None:
    """Open the fused modules whose tensors shrink."""
    modules = dict(model.named_modules())
    for path in plan.opened:
        if path not in modules:
            raise PlanError(
                f"the plan opens {path!r}, which {type(model).__name__} does not have: it is for another model"
            )
        module = modules[path]
        cut = any(cut.name.startswith(f"{path}.") for cut in plan.tensors)
        if type(module) is nn.MultiheadAttention and (cut or plan.removal.modules):  # fused paths read gone layers
            open_module(module)
            close_nested_paths(model)


def _check_optimizer(optimizer: torch.optim.Optimizer, cuts: Mapping[int, TensorCut], model: nn.Module) -> None:
    mine = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
        raise PlanError(f"the optimiser holds no parameter of this {type(model).__name__}; pass the one that trains it")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            cut = cuts.get(id(parameter))
            if cut is None:
                continue
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim and tuple(value.shape) != cut.shape:
                    raise PlanError(
                        f"the optimiser keeps {name!r} of shape {list(value.shape)} for {cut.name!r} of shape {list(cut.shape)}; "
                        "only states shaped like their parameter can be cut: make a new optimiser for the compact model"
                    )


def _repoint(optimizer: torch.optim.Optimizer, replaced: Mapping[int, Tensor], cuts: Mapping[int, TensorCut]) -> None:
    """Make the optimiser hold the new parameters, with its state cut like them."""
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            new = replaced.get(id(old))
            if new is None:
                continue
            group["params"][i] = new
            state: Any = optimizer.state.pop(old, None)
            if state is not None:
                cut = cuts.get(id(old))
                optimizer.state[new] = {
                    name: cut_tensor(value, cut)
                    if cut is not None and isinstance(value, Tensor) and value.ndim
                    else value
                    for name, value in state.items()
                }


def _drop(optimizer: torch.optim.Optimizer, gone: Collection[int]) -> None:
    """Make the optimiser forget parameters that went with a branch."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
