"""Keeps account of a run while it goes on, and turns it into the record that the report is drawn from."""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.allocate import Budget
from secateur.artefact.sparse import stored_bytes
from secateur.axes import BRANCHES, Cost, Network, Plan, Scores
from secateur.errors import DataError
from secateur.report import (
    AxisRecord,
    BranchRecord,
    FrozenRecord,
    Goal,
    LatencyRecord,
    Machine,
    Reproduction,
    Row,
    RunRecord,
    Step,
    WeightRecord,
)
from secateur.report import Proof as ProofRecord
from secateur.report.quantity import TIMES
from secateur.sparse import SparseResult
from secateur.targets import Measurement, worst
from secateur.torch import Inputs, Proof, TracedNetwork
from secateur.torch.graph import graph_of
from secateur.torch.state import evaluating
from secateur.torch.structure import tensors_in
from secateur.train.protocol import Step as TrainingStep

Share = float | tuple[int, int]
"""A number between 0 and 1; or how many answers are right, and how many there are."""

Evaluate = Callable[[nn.Module], Share | Mapping[str, Share]]
"""Measures a model: one share (called accuracy), or several by name; higher is better."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


ROUNDING = 1e-3
"""By how many per cent a share may lie outside 0 to 1, because it was summed up in single precision."""


@dataclass(slots=True)
class Run:
    """What happens in one run.

    Attributes:
        name: What the model is called.
        seed: For everything random.
        evaluate: The caller's measure of a model, or None.
        progress: The caller's callback, or None.
        steps: The metrics after each step so far.
        samples: On how many answers each metric was measured, where the caller's measure says so.
    """

    name: str
    seed: int
    evaluate: Evaluate | None = None
    progress: Progress | None = None
    steps: list[Step] = field(default_factory=list)
    samples: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell the caller that a stage begins, and that it is done."""
        if self.progress is not None:
            self.progress(name, 0, 1)
        yield
        if self.progress is not None:
            self.progress(name, 1, 1)

    def training(self, step: TrainingStep) -> None:
        """Tell the caller how far the recovery is."""
        if self.progress is not None and step.steps is not None:
            self.progress("recover", step.step, step.steps)

    def sparsifying(self, layer: str, done: int, total: int) -> None:  # noqa: ARG002  as sparsify tells it
        """Tell the caller how many layers are sparse."""
        if self.progress is not None:
            self.progress("sparsify", done, total)

    def evaluated(self, step: str, model: nn.Module) -> None:
        """Evaluate the model after a step, in eval mode, with its modes put back."""
        if self.evaluate is None:
            return
        with self.stage("evaluate"), evaluating(model), torch.no_grad():
            metrics = self.evaluate(model)
        found = metrics if isinstance(metrics, Mapping) else {"accuracy": metrics}
        try:
            shares = {str(name): share_of(value) for name, value in found.items()}
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"evaluate(model) must return a number or a pair (right, all), or such by name; got {metrics!r}"
            ) from error
        self.steps.append(Step(step, {name: 100 * value for name, (value, _) in shares.items()}))
        self.samples.update((name, count) for name, (_, count) in shares.items() if count is not None)
        for name, value in self.steps[-1].metrics.items():
            if not -ROUNDING <= value <= 100 + ROUNDING:
                raise DataError(f"evaluate(model) must return shares between 0 and 1; {name} is {value / 100:g}")


def record(
    run: Run,
    network: TracedNetwork,
    plan: Plan,
    scores: Scores,
    proof: Proof,
    sparse: SparseResult,
    measured: Mapping[str, Measurement],
    budget: Budget,
) -> RunRecord:
    """The record of a finished run."""
    dense, pruned = network.cost(), network.cost(plan)
    latency = _latency(measured, network.inputs)
    return RunRecord(
        title=f"{run.name}, pruned",
        model=run.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=(
            *_metric_rows(run),
            *_cost_rows(dense, pruned),
            *weight_rows(network.model, sparse),
            *_measured_rows(latency, measured),
        ),
        goals=_goals(budget, dense, pruned),
        steps=tuple(run.steps),
        axes=tuple(_axis(network, plan, scores, dense, i) for i in range(len(network.axes))),
        branches=_branches(network, plan),
        weights=weight_records(sparse),
        frozen=_frozen(network),
        latency=latency,
        proofs=(*_proofs(proof), *_agreement(measured)),
        reproduction=Reproduction(seed=run.seed, versions=versions(), machine=machine()),
        notes=_notes(network, plan, sparse),
    )


def weight_rows(dense: nn.Module, sparse: SparseResult) -> tuple[Row, ...]:
    """How many weights are not zero of those that became sparse, and the bytes of all; nothing where none became sparse."""
    if not sparse.report:
        return ()
    before = sum(dense.get_parameter(name).numel() for name in sparse.plan.stays)
    return (
        Row("nonzero weights", "", before, sparse.plan.total - sparse.plan.zeros, "lower"),
        Row("bytes as secateur.save stores them", "B", stored_bytes(dense), stored_bytes(sparse.model), "lower"),
    )


def weight_records(sparse: SparseResult) -> tuple[WeightRecord, ...]:
    """What became of each weight."""
    return tuple(WeightRecord(layer.name, prod(layer.shape), layer.zeros, layer.error) for layer in sparse.report)


def share_of(value: Share) -> tuple[float, int | None]:
    """A share as a measure may give it, and of how many answers it is: of a pair, how many are right and how many there are.

    Example:
        >>> share_of((9, 12)), share_of(0.75)
        ((0.75, 12), (0.75, None))
    """
    if not isinstance(value, tuple):
        return float(value), None
    right, count = value
    return float(right) / int(count), int(count)


def _metric_rows(run: Run) -> list[Row]:
    if not run.steps:
        return []
    before, after = run.steps[0].metrics, run.steps[-1].metrics
    return [
        Row(name, "%", value, after.get(name), "higher", compare="difference", samples=run.samples.get(name))
        for name, value in before.items()
    ]


def _cost_rows(dense: Cost, pruned: Cost) -> list[Row]:
    return [
        Row("parameters", "", dense.parameters, pruned.parameters, "lower"),
        Row("MACs", "", dense.macs, pruned.macs, "lower"),
        Row("bytes of weights", "B", dense.bytes, pruned.bytes, "lower"),
    ]


def _latency(measured: Mapping[str, Measurement], inputs: Inputs) -> tuple[LatencyRecord, ...]:
    if not measured:
        return ()
    dense, pruned = measured["dense"], measured["pruned"]
    threads = f"{dense.threads} thread{'s' if dense.threads != 1 else ''}"
    shapes = " and ".join(TIMES.join(map(str, tensor.shape)) for tensor in tensors_in(inputs))
    name = f"{dense.target} on {dense.device}, {threads}, inputs {shapes}"
    in_ms = (tuple(1000 * sample for sample in m.latency.samples) for m in (dense, pruned))
    return (LatencyRecord(name, *in_ms),)


def _measured_rows(latency: tuple[LatencyRecord, ...], measured: Mapping[str, Measurement]) -> list[Row]:
    if not measured:
        return []
    dense, pruned = measured["dense"], measured["pruned"]
    rows = list(latency[0].rows())
    if dense.memory is not None and pruned.memory is not None:
        rows.append(Row("peak memory", "B", dense.memory.peak, pruned.memory.peak, "lower"))
    if dense.agreement is not None:  # it has a form of its own
        rows.append(Row(f"bytes that {dense.target} loads", "B", dense.stored, pruned.stored, "lower"))
    return rows


def _goals(budget: Budget, dense: Cost, pruned: Cost) -> tuple[Goal, ...]:
    limits = budget.limits(dense)
    every = (
        ("parameters", "", budget.params, limits.parameters, pruned.parameters),
        ("MACs", "", budget.macs, limits.macs, pruned.macs),
        ("bytes", "B", budget.bytes, limits.bytes, pruned.bytes),
    )
    return tuple(Goal(name, unit, limit, reached) for name, unit, asked, limit, reached in every if asked is not None)


def _axis(network: Network, plan: Plan, scores: Scores, dense: Cost, index: int) -> AxisRecord:
    axis = network.axes[index]
    share = 1 - network.cost({axis.name: 0}).macs / dense.macs if dense.macs else None
    values = np.asarray(scores[axis.name], dtype=np.float64)
    return AxisRecord(
        name=axis.name,
        size=axis.size,
        kept=plan.axes[index].kept,
        exact=axis.exact,
        slots=tuple(map(str, axis.slots)),
        scores=tuple(values.tolist()),
        cost_share=share,
        kind=axis.kind,
    )


def _branches(network: Network, plan: Plan) -> tuple[BranchRecord, ...]:
    """Every branch, where the plan says which of them stay; where it does not, they need not be looked for."""
    if BRANCHES not in plan.kept:
        return ()
    costs = map(network.branch_cost, range(len(network.branches)))
    return tuple(
        BranchRecord(branch.name, branch.where, number in plan.kept[BRANCHES], cost.parameters, cost.macs)
        for number, (branch, cost) in enumerate(zip(network.branches, costs, strict=True))
    )


def _frozen(network: Network) -> tuple[FrozenRecord, ...]:
    groups: dict[tuple[str, str], list[Any]] = {}
    for item in network.frozen:
        groups.setdefault((item.reason, item.where), []).append(item)
    return tuple(
        FrozenRecord(reason, where, tuple(dict.fromkeys(i.tensor for i in items)), sum(i.count for i in items))
        for (reason, where), items in groups.items()
    )


def _proofs(proof: Proof) -> tuple[ProofRecord, ...]:
    count = f"{proof.operators:,} operators of the compact model against those of the dense one, with their numbers and shapes"
    same = ProofRecord("same operators", 0, 0, True, count)
    if proof.dtype == "meta":
        return (same,)
    texts = {
        "permutation": (proof.permutation, f"every axis permuted at random in all its slots, in {proof.dtype}"),
        "zero = prune": (proof.zero_is_prune, f"masked against compact model over the exact axes, in {proof.dtype}"),
    }
    measured = (
        ProofRecord(name, value, proof.tolerance, value <= proof.tolerance, detail)
        for name, (value, detail) in texts.items()
    )
    return (*measured, same)


def _agreement(measured: Mapping[str, Measurement]) -> tuple[ProofRecord, ...]:
    """How near both networks on the target are to PyTorch; nothing where PyTorch ran them as they are."""
    found = worst(one.agreement for one in measured.values())
    if found is None:
        return ()
    detail = f"outputs of both networks, as they were measured, on {measured['dense'].target} against PyTorch's"
    return (ProofRecord("target = PyTorch", found.difference, found.tolerance, True, detail),)


def _notes(network: TracedNetwork, plan: Plan, sparse: SparseResult) -> tuple[str, ...]:
    cut = {axis.name for axis in plan.axes if len(axis.kept) < axis.size}
    inexact = [axis.name for axis in network.axes if axis.name in cut and not axis.exact]
    notes = []
    if inexact:
        notes.append(
            f"{len(inexact)} of the cut axes are normalised: a statistic runs over them, so that removing a unit is not the same "
            "as zeroing it."
        )
    if plan.opened:
        notes.append(
            f"{len(plan.opened)} fused attention modules run in open form, because heads or widths of them went."
        )
    if sparse.report:
        notes.append(
            f"Weights became sparse in the compact model, solved on {sparse.samples} samples; their errors are those before any "
            "recovery."
        )
    if graph_of(network.model) is not None:
        notes.append("Both networks are in graph form: what was evaluated and measured is not the model's own code.")
    return tuple(notes)


def versions() -> dict[str, str]:
    """The version of each library that a run depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in ("secateur", "torch", "numpy")}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


def machine() -> Machine:
    """What this runs on."""
    return Machine(cpu=_cpu(), threads=torch.get_num_threads(), system=f"{platform.system()} {platform.machine()}")


def _cpu() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
