"""Proof, not hope: that a plan does to this very model what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.axes import BRANCHES, Axis, Integers, Network, Plan
from secateur.errors import SecateurError, VerificationError
from secateur.torch.apply import compact, mask
from secateur.torch.capture import Inputs, TracedNetwork, call, same_numbers, watched
from secateur.torch.operators import Recording
from secateur.torch.places import cause_of
from secateur.torch.replicate import replicate
from secateur.torch.rerun import check_operators, expected_steps
from secateur.torch.short_list import reorder
from secateur.torch.state import state_of
from secateur.torch.structure import tensors_in

TOLERANCE = {
    torch.float64: 1e-9,
    torch.complex128: 1e-9,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured; errors are max |a - b| / max |a| over all outputs, NaN for a model on the meta device.

    Attributes:
        permutation: The change of the output when every axis is permuted at random in all its slots.
        zero_is_prune: The difference between the masked and the compact model, over the exact axes of the plan.
        tolerance: What both had to stay below.
        dtype: What it was computed in.
        shapes: The number of tensors whose shape was predicted and found.
        operators: The number of operators that the compact model was found to run as the dense one does.
    """

    permutation: float
    zero_is_prune: float
    tolerance: float
    dtype: str
    shapes: int
    operators: int


def verify(model: nn.Module, plan: Plan, example_inputs: Inputs, *, seed: int = 0) -> Proof:
    """Check a plan on the model itself.

    Four proofs: the plan cuts every slot of its axes (*shape*); the compact model runs the operators of the dense one, with the
    same numbers, and results of the predicted shapes (*same operators*); permuting every axis leaves the output as it is
    (*permutation*); and on exact axes the compact model equals the masked one (*zero = prune*). The last two run in float64
    where the model allows it.

    Args:
        model: The dense model; not changed.
        plan: The plan to check.
        example_inputs: As for `trace`.
        seed: For the permutations.

    Returns:
        The measured errors.

    Raises:
        VerificationError: A proof failed; names the axis, the operator and the line.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> inputs = torch.ones(1, 4)
        >>> plan = sc.trace(model, inputs).plan({"0": range(3)})
        >>> sc.verify(model, plan, inputs).zero_is_prune < 1e-9
        True
    """
    recording = Recording()
    network = watched(model, example_inputs, recording)
    shapes = _check_slots(network, plan)
    small = compact(model, plan)
    _check_shapes(small, plan)
    widths = _without_branches(network, plan)
    expected, narrow = expected_steps(network, recording, widths), small if widths is plan else compact(model, widths)
    if any(tensor.is_meta for tensor in state_of(model).values()):
        _run(small, pytree.tree_map_only(Tensor, lambda t: t.to("meta"), example_inputs), "the compact model")
        operators = check_operators(recording, expected, narrow, example_inputs)
        return Proof(nan, nan, nan, "meta", shapes, operators)
    exact_model, inputs, dtype = _in_float64(model, example_inputs)
    tolerance = TOLERANCE[dtype]
    _run(small, example_inputs, "the compact model")
    operators = check_operators(recording, expected, narrow, example_inputs)
    permutation = permutation_error(exact_model, network, inputs, seed)
    if not permutation <= tolerance:
        _check_deterministic(exact_model, inputs, tolerance)
        raise VerificationError(_blame_permutation(exact_model, network, inputs, seed, permutation, tolerance))
    difference = zero_is_prune_error(exact_model, network, plan, inputs)
    if not difference <= tolerance:
        _check_deterministic(exact_model, inputs, tolerance)
        raise VerificationError(_blame_plan(exact_model, network, plan, inputs, difference, tolerance))
    return Proof(permutation, difference, tolerance, str(dtype).removeprefix("torch."), shapes, operators)


def _without_branches(network: Network, plan: Plan) -> Plan:
    """What the plan does to axes: the operators of removed branches are not there to compare."""
    return (
        network.plan({n: kept for n, kept in plan.kept.items() if n != BRANCHES}) if BRANCHES in plan.counts else plan
    )


def permutation_error(
    model: nn.Module, network: Network, inputs: Inputs, seed: int = 0, only: Axis | None = None
) -> float:
    """How much the output changes when the axes (or `only` one) are permuted at random in all their slots."""
    generator = np.random.default_rng(seed)
    order = np.arange(network.unit_count)
    for axis in network.axes:
        units = network.unit_range(axis.name)
        circle = generator.permutation(order[units])  # each to the next, so that none stays where it was
        if only is None or axis is only:
            order[circle] = np.roll(circle, 1)
    permuted = permute(model, network, order)
    return difference(_run(model, inputs, "the model"), _run(permuted, inputs, "the permuted model"))


def permute(model: nn.Module, network: Network, order: Integers) -> nn.Module:
    """A copy of the model in which unit `u` stands where unit `order[u]` stood."""
    names = {id(tensor): name for name, tensor in state_of(model).items()}
    spans = map(network.unit_range, sorted(network.axes_of_lists))
    lists = [np.arange(span.start, span.stop) for span in spans]
    alone = order.copy()  # the units of lists move afterwards, with all that belongs to them
    for units in lists:
        alone[units] = units

    def permuted(tensor: Tensor) -> Tensor:
        result = tensor.detach().clone()
        for d, units in enumerate(network.dims[names[id(tensor)]] if id(tensor) in names else ()):
            if units is not None:
                source = permuted_positions(units, alone)
                for moved in lists:
                    source = source[_moved_with_entries(units, moved, order)]
                result = result.index_select(d, torch.from_numpy(source).to(tensor.device))
        return result

    copy = replicate(model, permuted)
    stands: dict[int, list[str]] = {}
    for entry in network.entries:
        stands.setdefault(entry.unit, []).append(entry.module)
    pairs = [zip(stands[int(order[unit])], goals, strict=True) for unit, goals in stands.items()]
    reorder(copy, [pair for one in pairs for pair in one])
    return copy


def _moved_with_entries(units: Integers, entries: Integers, order: Integers) -> Integers:
    """For each position of a dim, where it takes its value from when all that belongs to an entry moves with it."""
    source = np.arange(units.shape[1])
    owner = np.where(np.isin(units, entries), units, -1).max(axis=0)
    blocks = {unit: np.flatnonzero(owner == unit) for unit in dict.fromkeys(owner[owner >= 0].tolist())}
    if len(set(map(len, blocks.values()))) == 1:
        for unit, block in blocks.items():
            source[block] = blocks[int(order[unit])]
    elif blocks:  # of other sizes: they lie one after the other
        source[owner >= 0] = np.concatenate([blocks[int(order[unit])] for unit in blocks])
    return source


def permuted_positions(units: Integers, order: Integers) -> Integers:
    """For each position of a dim (`units`: `[factors, n]`), where it takes its value from when units move by `order`."""
    positions = np.arange(units.shape[1])
    fixed = (units < 0).all(axis=0)
    goal = np.where(units < 0, units, order[units])
    keys = np.vstack([units, np.where(fixed, positions, -1)])
    goal_keys = np.vstack([goal, keys[-1:]])
    source = np.empty_like(positions)
    source[np.lexsort((positions, *goal_keys))] = np.lexsort((positions, *keys))
    return source


def zero_is_prune_error(model: nn.Module, network: TracedNetwork | Network, plan: Plan, inputs: Inputs) -> float:
    """The difference between masked and compact model, for the part of the plan that lies on exact axes."""
    exact = {BRANCHES, *(axis.name for axis in network.axes if axis.exact)}
    part = network.plan({axis.name: np.array(axis.kept) for axis in plan.axes if axis.name in exact})
    masked = _run(mask(model, part), inputs, "the masked model")
    return difference(masked, _run(compact(model, part), inputs, "the compact model"))


def difference(left: Any, right: Any) -> float:
    """Max |a - b| / max |a| over all tensors of two outputs; infinite where their shapes differ or there are none."""
    ours, theirs = tensors_in(left), tensors_in(right)
    worst = 0.0
    if len(ours) != len(theirs) or not ours:
        return float("inf")
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        a, b = (torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in (a, b))
        a, b = a.to(torch.float64), b.to(torch.float64)
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, 0.0, (a - b).abs())
        scale = torch.where(a.isfinite(), a.abs(), 0.0).max().clamp_min(1e-30)
        error = float((gap / scale).max())
        worst = max(worst, float("inf") if error != error else error)
    return worst


def _check_slots(network: Network, plan: Plan) -> int:
    """The plan must cut exactly the slots of its axes."""
    try:
        expected = network.plan(plan.kept)
    except SecateurError as error:
        raise VerificationError(f"the plan does not fit this model: {error}") from error
    ours = {cut.name: cut for cut in plan.tensors}
    theirs = {cut.name: cut for cut in expected.tensors}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            axes = [a.name for a in network.axes if any(slot.tensor == name for slot in a.slots)]
            raise VerificationError(
                f"the plan cuts {name!r} to {_shape(ours.get(name))}, but its axes {axes} ask for {_shape(theirs.get(name))}; "
                "make plans with network.plan(...) or an allocator"
            )
    if plan.removal != expected.removal:
        raise VerificationError(
            f"the plan removes other modules than its branches and axes ask for: {plan.removal}; make plans with "
            "network.plan(...)"
        )
    return len(theirs)


def _shape(cut: Any) -> str:
    return "its whole shape" if cut is None else str(list(cut.shape_after))


def _check_deterministic(model: nn.Module, inputs: Inputs, tolerance: float) -> None:
    """All runs draw the same random numbers; where those differ for other units, a proof says nothing."""
    error = difference(_run(model, inputs, "the model"), _run(model, inputs, "the model", seed=1))
    if not error <= tolerance:
        raise VerificationError(
            f"the output of {type(model).__name__} in eval mode differs by {error:.1e} from run to run, or holds no tensor, so "
            "that nothing can be proved of it; switch its randomness off (dropout, sampling) in eval mode"
        )


def _check_shapes(small: nn.Module, plan: Plan) -> None:
    state = state_of(small)
    for cut in plan.tensors:
        if not cut.fits(state[cut.name].shape, whole=isinstance(state[cut.name], nn.Parameter), after=True):
            raise VerificationError(
                f"{cut.name!r} came out as {list(state[cut.name].shape)}, predicted {list(cut.shape_after)}"
            )


def _in_float64(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, torch.dtype]:
    """The model in eval mode in float64 where its code allows that, else in its own precision.

    Parameters that are all zero (a last layer or a residual scale at initialisation) would hide what lies before them; the proof
    must hold for any weights, so they get random ones.
    """
    generator = torch.Generator().manual_seed(0)

    def widened(value: Tensor) -> Tensor:
        wider = torch.float64 if value.is_floating_point() else torch.complex128 if value.is_complex() else value.dtype
        wide = value.detach().to(wider, copy=True)
        if isinstance(value, nn.Parameter) and value.is_floating_point() and not value.any():
            wide += 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(wide)
        return wide

    wide = replicate(model, widened).eval()
    wide_inputs = pytree.tree_map_only(Tensor, widened, inputs)
    precision = _Precision()
    try:
        with torch.no_grad(), precision:
            call(replicate(wide, lambda tensor: tensor.detach()), wide_inputs)  # what it caches goes with the copy
    except RuntimeError:
        own = replicate(model, lambda tensor: tensor.detach().clone()).eval()
        dtypes = [t.dtype for t in model.parameters() if t.dtype in TOLERANCE] or [torch.float32]
        return own, inputs, max(dtypes, key=lambda dtype: TOLERANCE[dtype])
    return wide, wide_inputs, precision.lowest


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the coarsest floating type that a run computes in: some models cast to float32 by themselves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lowest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if (
                isinstance(leaf, Tensor)
                and leaf.numel() > 1
                and TOLERANCE.get(leaf.dtype, 0.0) > TOLERANCE[self.lowest]
            ):
                self.lowest = leaf.dtype
        return out


def _run(model: nn.Module, inputs: Inputs, what: str, seed: int = 0) -> Any:
    """Run a copy in eval mode, so that what its code caches goes with it; a failure names the line of the code."""
    try:
        with same_numbers(seed):
            return call(replicate(model, lambda tensor: tensor.detach()).eval(), inputs)
    except Exception as error:
        raise VerificationError(f"{what} does not run: {cause_of(error)}") from error


def _blame_permutation(
    model: nn.Module, network: Network, inputs: Inputs, seed: int, error: float, tolerance: float
) -> str:
    """Name the axis whose permutation changes the output."""
    return _blame(
        network, lambda axis: permutation_error(model, network, inputs, seed, axis), "permuting", error, tolerance
    )


def _blame_plan(model: nn.Module, network: Network, plan: Plan, inputs: Inputs, error: float, tolerance: float) -> str:
    """Name the axis, or the branches, whose removal is not what zeroing them is."""
    chosen = {name: kept for name, kept in plan.kept.items() if name == BRANCHES}
    removed = [branch for i, branch in enumerate(network.branches if chosen else ()) if i not in chosen[BRANCHES]]
    if removed and not (zero_is_prune_error(model, network, network.plan(chosen), inputs) <= tolerance):
        named = "; ".join(f"{branch.name} ({branch.where})" for branch in removed[:4])
        return (
            f"removing branches changes the output by {error:.1e} (allowed: {tolerance:.0e}): {named}; keep them, and please "
            "report it as a fault of Secateur"
        )

    def alone(axis: Axis) -> float:
        if not axis.exact:
            return 0.0
        return zero_is_prune_error(model, network, network.plan({axis.name: plan.kept[axis.name]}), inputs)

    return _blame(network, alone, "removing units of", error, tolerance)


def _blame(network: Network, alone: Callable[[Axis], float], doing: str, error: float, tolerance: float) -> str:
    worst = max(network.axes, key=alone)
    operators = sorted({c.where for c in network.contractions if any(_meets(network, worst, d) for d in c.dims)})
    return (
        f"{doing} axis {worst.name!r} ({', '.join(map(str, worst.slots[:4]))}) changes the output by {error:.1e} "
        f"(allowed: {tolerance:.0e}); operators on it: {'; '.join(operators[:4]) or 'none'}; "
        "exclude the axis, and please report it as a fault of Secateur"
    )


def _meets(network: Network, axis: Axis, units: Integers) -> bool:
    span = network.unit_range(axis.name)
    return bool(((units >= span.start) & (units < span.stop)).any())
