"""Everything that is done with one model: find its axes, remove 30 % of each, prove it, save and reload it, export it."""

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from machine import memory
from models.catalogue import build, parameters
from models.large import Inputs
from reaching.masked import Equality, equality
from reaching.stages import StageError, Stages
from tools.peers import PEERS, NothingRemovedError, Prune
from torch import nn

import secateur as sc
from secateur.torch.capture import call
from secateur.torch.structure import tensors_in

SHARE = 0.7
"""What stays of each axis."""

MOST_REASONS = 8


def reach(name: str, tool: str, tell: Callable[[dict[str, Any]], None], largest: int) -> dict[str, Any]:
    """The record of one model with one tool: how far it got, and what was found.

    Args:
        name: `library/model`.
        tool: `secateur` or one of peers.PEERS.
        tell: Is handed the record whenever a stage begins.
        largest: Models with more parameters are proved by their shapes and operators alone, on the meta device.
    """
    stages = Stages(name, tool, tell)
    try:
        with stages("build"):
            whole = tool != "secateur" or parameters(name) <= largest
            model, inputs = build(name, "cpu" if whole else "meta")
        stages.note(parameters=count(model), computed=whole)
        if tool == "secateur":
            _secateur(name, model, inputs, stages, whole)
        else:
            _peer(PEERS[tool], model, inputs, stages)
    except StageError:
        return stages.record
    stages.note(ok=True)
    return stages.record


def _secateur(name: str, model: nn.Module, inputs: Inputs, stages: Stages, whole: bool) -> None:
    with stages("trace"):
        before, started = memory("VmRSS"), time.process_time()
        network = sc.trace(model, inputs)
        stages.note(seconds=time.process_time() - started, peak_mb=memory("VmHWM") - before)
        stages.note(axes=len(network.axes), free_share=free_share(network), frozen=frozen(network))
        if not network.axes:
            raise LookupError("no axis is free")
    with stages("plan"):
        generator = np.random.default_rng(0)
        plan = network.plan(
            {a.name: np.sort(generator.choice(a.size, a.near(SHARE * a.size), replace=False)) for a in network.axes}
        )
    with stages("run"):
        small = sc.compact(model, plan)
        outputs = run(small, inputs)
        stages.note(removed=1 - count(small) / count(model))
    with stages("verify"):
        proof = sc.verify(model, plan, inputs)
        stages.note(max_error=max(proof.permutation, proof.zero_is_prune) if whole else None)
    if not whole:
        return
    with stages("reload"), tempfile.TemporaryDirectory() as folder:
        sc.save(small, folder, plan)
        again = run(sc.load(fresh(name, model), folder), inputs)
        if not all(map(_equal, tensors_in(outputs), tensors_in(again))):
            raise ArithmeticError("the reloaded model gives other results")
    stages.note(ok=True, exports=False)  # what does not export in time has pruned right nevertheless
    with stages("export"):
        stages.note(exports=exports(small, inputs))


def _peer(prune: Prune, model: nn.Module, inputs: Inputs, stages: Stages) -> None:
    cut = prune(model, inputs, stages)
    with stages("run"):
        run(cut.small, inputs)
        stages.note(removed=1 - count(cut.small) / count(model))
        if count(cut.small) == count(model):
            raise NothingRemovedError("no parameter became smaller")
    with stages("verify"):
        twin = copy.deepcopy(model)
        try:
            cut.repeat(twin)
        except Exception:  # noqa: BLE001 - the first time it could, so this is no fault of the tool
            found = Equality(None, equal=True, unchecked="the same could not be done again")
        else:
            found = equality(model, cut.small, twin, inputs)
        stages.note(max_error=found.error, unchecked=found.unchecked)
        if not found.equal:
            raise ArithmeticError("it runs, and does not equal the masked model")


def fresh(name: str, model: nn.Module) -> nn.Module:
    """Another instance of the model's class; of transformers by its configuration, because finding a small one takes long."""
    if name.startswith("transformers/"):
        return type(model)(copy.deepcopy(model.config)).eval()
    return build(name)[0]


def count(model: nn.Module) -> int:
    """The numbers in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def run(model: nn.Module, inputs: Inputs) -> Any:
    """One call, without gradients; random numbers are the same in each."""
    torch.manual_seed(0)
    with torch.no_grad():
        return call(model, inputs)


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num()) if left.is_floating_point() else torch.equal(left, right)


def exports(model: nn.Module, inputs: Inputs) -> bool:
    """Whether `torch.export` exports the model, and what it exports runs."""
    args = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    try:
        torch.export.export(model, args, kwargs).module()(*args, **kwargs)
    except Exception:  # noqa: BLE001 - it also fails for many dense models
        return False
    return True


def free_share(network: Any) -> float:
    """The share of the parameters that go with some unit."""
    whole = sum(prod(spec.shape) for spec in network.tensors.values() if spec.parameter)
    return 1 - sum(prod(fixed) for fixed in fixed_positions(network).values()) / whole if whole else 0.0


def fixed_positions(network: Any) -> dict[str, list[int]]:
    """For each parameter, how many positions of each dim go with no unit: their product is fixed."""
    return {
        name: [
            n if units is None else int((units < 0).all(axis=0).sum())
            for n, units in zip(spec.shape, network.dims[name], strict=True)
        ]
        for name, spec in network.tensors.items()
        if spec.parameter
    }


def frozen(network: Any) -> list[tuple[int, str, str]]:
    """The reasons that hold most of the parameters that are on no axis: how many, why, and the line."""
    held: Counter[tuple[str, str]] = Counter()
    fixed = fixed_positions(network)
    for item in network.frozen:
        if prod(fixed.get(item.tensor, [0])) and network.tensors[item.tensor].shape[item.dim] > 1:
            part = item.count / max(1, fixed[item.tensor][item.dim])
            held[item.reason[:200], item.where.partition(" in ")[0]] += round(part * prod(fixed[item.tensor]))
    return [(count, *why) for why, count in held.most_common(MOST_REASONS)]
