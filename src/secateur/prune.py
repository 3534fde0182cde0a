"""The main job, read top-down: trace, score, allocate, verify, compact, compensate, sparsify, recover, measure, record."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.account import Evaluate, Progress, Run, record
from secateur.allocate import Allocator, Budget, Global, Insignificant, Uniform
from secateur.axes import Plan
from secateur.errors import BudgetError, DataError, ModelError, PlanError, RecoveryError
from secateur.report import RunRecord
from secateur.sparse import SparseResult, WeightPlan
from secateur.targets import EAGER, Measurement, Target
from secateur.targets import measure as measure_on
from secateur.torch import Inputs, Proof, TracedNetwork, compact, trace, verify
from secateur.torch import scores as criteria
from secateur.torch.batches import split_batch
from secateur.torch.compensate import Compensation, Refit, compensate
from secateur.torch.graph import in_form
from secateur.torch.replicate import replicate
from secateur.torch.state import state_of
from secateur.train.masked import masked
from secateur.train.own import OwnTraining, as_recovery
from secateur.train.recover import FineTune

AllocationFactory = Callable[..., Allocator]
Sparsify = Callable[..., SparseResult]
DEFAULT_COMPENSATION: tuple[Compensation, ...] = (Refit(),)
"""Fits weights, folds what is constant into biases, and re-estimates batch norms."""


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What the main job gives back.

    Attributes:
        model: The compact model, of the same class as the dense one; in graph form, a graph.
        plan: Which units stay.
        weights: Which weights of these stay; empty where none were to go.
        network: What could be removed, and what could not and why.
        proof: The measured errors of the proofs.
        report: The record of the run; `secateur.report.write(result.report, folder)` makes a page of it.
    """

    model: nn.Module
    plan: Plan
    weights: WeightPlan
    network: TracedNetwork
    proof: Proof
    report: RunRecord


def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    budget: Budget,
    data: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    score: criteria.Score | None = None,
    allocation: AllocationFactory = Global,
    compensation: Iterable[Compensation] = DEFAULT_COMPENSATION,
    sparsify: Sparsify | None = None,
    recover: FineTune | OwnTraining | None = None,
    exclude: tuple[str, ...] = (),
    multiple_of: int = 1,
    form: str = "module",
    seed: int = 0,
    measure: bool = True,
    target: Target = EAGER,
    progress: Progress | None = None,
    name: str | None = None,
) -> PruneResult:
    """Prune a model to a budget, with proof.

    Args:
        model: Any module; it is not changed.
        example_inputs: What `model(...)` takes: a tensor, a tuple of positional or a mapping of keyword arguments.
        budget: What may remain, for example `Budget(macs=0.5)`.
        data: Training batches `(inputs, targets)`, mappings with labels, or bare inputs; gone through several times. Scores,
            compensation and recovery need it; without it units are chosen by magnitude and nothing is mended.
        evaluate: `model -> accuracy`, or `model -> {name: share}`; shares lie between 0 and 1, higher is better. A pair `(right,
            all)` is a share that says on how many answers it was measured. Called with the model in eval mode, without gradients.
        score: What a unit is worth; by default `Fisher` with labelled data, `Energy` with bare inputs, else `Magnitude`.
        allocation: Makes the allocator from `(budget, exclude=, multiple_of=)`: `allocate.Global`, `allocate.Uniform`,
            `allocate.Insignificant`, or a `functools.partial` of one.
        compensation: Steps that change what stays to make up for what goes, in this order; empty = none. Needs `data`.
        sparsify: Sets weights of the compact model to zero: a `functools.partial` of `secateur.sparsify` with its choices, called
            as `(model, data, progress=)`. Needs `data`.
        recover: `recover.FineTune(...)`, or your own function `(model, data) -> model`; zeros that `sparsify` made stay zero.
            Needs `data`.
        exclude: Axes, modules or tensors that keep their shape, as name patterns.
        multiple_of: Kept widths are multiples of this where they can be.
        form: "module", or "graph" to prune the model's graph form (see `as_graph`): more can go, and the result has no code of
            its own. Both models are then measured in graph form.
        seed: For everything random in the proofs.
        measure: Measure latency and memory of both models, in turns.
        target: Where: `targets.Eager()`, `targets.Compile()`, `targets.OnnxRuntime()` or `targets.OpenVINO()`. The dense model is
            tried there before anything else is done.
        progress: Called as `progress(stage, done, total)`.
        name: What the report calls the model; by default its class.

    Returns:
        The compact model with its plan, proof and report.

    Raises:
        CaptureError: The model cannot be watched on these inputs, or has no graph form.
        ModelError: Its weights are not finite, or the form is none.
        DataError: The data are empty, run out, or do not fit.
        BudgetError: The budget cannot be met; says what can be.
        PlanError: A pattern matches nothing, or `sparsify` gives something else than it should.
        RecoveryError: Training cannot start, diverged, or gave back another model or weights that had gone.
        VerificationError: A proof failed.
        TargetError: The target cannot run one of both models, or computes something else than PyTorch.
        MissingExtraError: The target's runtime is not installed.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> result = sc.prune(model, torch.zeros(1, 4), budget=sc.Budget(macs=0.5), measure=False)
        >>> result.model[0].out_features
        16
    """
    _check(model, budget, data, score, allocation, compensation, sparsify, recover)
    run = Run(name or type(model).__name__, seed, evaluate, progress)
    with run.stage("trace"):
        model = in_form(model, form, example_inputs)
        network = trace(model, example_inputs)
    if not network.axes:
        raise BudgetError(_nothing_to_prune(network, form))
    if measure:
        with run.stage("try the target"), target.load(model, example_inputs):
            pass
    run.evaluated("dense", model)
    with run.stage("score"):
        chosen = score if score is not None else _default_score(data)
        scores = chosen(network, data)
    with run.stage("allocate"):
        plan = allocation(budget, exclude=exclude, multiple_of=multiple_of)(network, scores)
    with run.stage("verify"):
        proof = verify(model, plan, example_inputs, seed=seed)
    small = compact(model, plan)
    run.evaluated("pruned", small)
    sparse = SparseResult(small, WeightPlan({}), ())
    if data is not None:
        for step in compensation:
            with run.stage(step.name):
                small = compensate(network, small, plan, data, [step])
            run.evaluated(step.name, small)
        if sparsify is not None:
            with run.stage("sparsify"):
                sparse = sparsify(small, data, progress=run.sparsifying)
            _check_sparse(sparse)
            small = sparse.model
            run.evaluated("sparse", small)
        if recover is not None:
            with run.stage("recover"), masked(small, sparse.plan):
                small = as_recovery(recover)(small, data, _teacher(model), run.training)
            _check_zeros(small, sparse.plan)
            run.evaluated("recovered", small)
    measured = _measured(run, target, model, small, example_inputs) if measure else {}
    report = record(run, network, plan, scores, proof, replace(sparse, model=small), measured, budget)
    return PruneResult(small, plan, sparse.plan, network, proof, report)


def _check(
    model: nn.Module,
    budget: Budget,
    data: Iterable[Any] | None,
    score: object,
    allocation: object,
    compensation: object,
    sparsify: object,
    recover: object,
) -> None:
    """Refuse early what would fail late."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    for argument, value in (("data", data), ("compensation", compensation)):
        if value is not None and not isinstance(value, Iterable):
            raise DataError(f"{argument}= must be something to go through, such as a list; got {value!r}")
    if score is not None and (isinstance(score, type) or not callable(score)):
        raise DataError(f"score= is an object such as secateur.scores.Fisher(); got {score!r}")
    if not callable(allocation) or isinstance(allocation, (Global, Uniform, Insignificant)):
        raise BudgetError(
            f"allocation= makes the allocator, such as secateur.allocate.Global itself; got {allocation!r}"
        )
    if sparsify is not None and not callable(sparsify):
        raise PlanError(
            "sparsify= makes a model sparse, such as functools.partial(secateur.sparsify, sparsity=0.5); "
            f"got {sparsify!r}"
        )
    if not isinstance(budget, Budget):
        raise BudgetError(f"the budget is a Budget, such as Budget(macs=0.5); got {budget!r}")
    if sparsify is not None and data is None:
        raise DataError("sparsify= needs data=: batches of what the model reads")
    if recover is not None and data is None:
        raise DataError("recover= needs data=: batches of (inputs, targets) to train on")
    if data is not None and iter(data) is data:
        raise DataError(
            f"data is a one-time {type(data).__name__}, but several steps go through it; pass a list of batches or a DataLoader"
        )
    for name, tensor in state_of(model).items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name!r} has NaN or infinite values; load finite weights before pruning")


def _nothing_to_prune(network: TracedNetwork, form: str) -> str:
    reasons = list(dict.fromkeys(f"{f.reason} ({f.where})" if f.where else f.reason for f in network.frozen))
    hint = "sizes that the code writes as numbers follow with form='graph'; " if form == "module" else ""
    return (
        f"nothing of {type(network.model).__name__} can be removed: {'; '.join(reasons[:4])}; {hint}"
        "print(secateur.trace(model, example_inputs)) shows all that is frozen"
    )


def _default_score(data: Iterable[Any] | None) -> criteria.Score:
    """Fisher where there are labels, consumer energy where there are only inputs, magnitude without data."""
    if data is None:
        return criteria.Magnitude()
    first = next(iter(data), None)
    if first is None:
        raise DataError("data has no batches; pass at least one")
    named = isinstance(first, Mapping) and any("label" in str(key) for key in first)
    labelled = named or split_batch(first)[1] is not None
    return criteria.Fisher() if labelled else criteria.Energy(otherwise=criteria.Magnitude())


def _check_sparse(result: object) -> None:
    if not isinstance(result, SparseResult):
        raise PlanError(
            f"sparsify= gave a {type(result).__name__}; it gives a SparseResult, as secateur.sparsify does, with the model in it"
        )


def _check_zeros(model: nn.Module, weights: WeightPlan) -> None:
    back = sum(int(parameter[~stays].count_nonzero()) for parameter, stays in weights.of(model))
    if back:
        raise RecoveryError(
            f"the recovery gave back {back:,} weights that had gone: zeros are held in the model that is passed in; train it "
            "itself and not a copy"
        )


def _teacher(model: nn.Module) -> nn.Module:
    """The dense model, as a copy that training cannot touch."""
    teacher = replicate(model, lambda tensor: tensor.detach())
    return teacher.eval().requires_grad_(False)


def _measured(
    run: Run, target: Target, model: nn.Module, small: nn.Module, inputs: Inputs
) -> Mapping[str, Measurement]:
    with run.stage("measure"):
        return measure_on({"dense": model, "pruned": small}, inputs, target=target)
