"""Runs a job, read top-down: check, claim the output, load, prune, save, report. The library does the work."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

import secateur as sc
from secateur import artefact, report
from secateur.account import share_of
from secateur.cli import choices
from secateur.cli.data import Data, load_data
from secateur.cli.job import Job, JobFile, Recovery, Sparsification
from secateur.cli.models import load_model
from secateur.cli.objects import find_object, guarded
from secateur.cli.output import claim
from secateur.cli.progress import Stages
from secateur.errors import JobError
from secateur.report import RunRecord, comparison_table
from secateur.report.quantity import quantity
from secateur.report.summary import summary
from secateur.train.objective import to_device

PROGRAM = "model.pt2"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to.

    Attributes:
        model: The pruned model.
        record: What was recorded.
        folder: Where everything lies.
        page: The report.
    """

    model: nn.Module
    record: RunRecord
    folder: Path
    page: Path

    def to_json(self) -> dict[str, Any]:
        """Where everything is, and what was compared and proved."""
        record = self.record
        return {
            "model": record.model,
            "output": str(self.folder),
            "report": str(self.page),
            "comparison": [asdict(row) | {"change": row.change, "verdict": row.verdict} for row in record.rows],
            "goals": [asdict(goal) | {"met": goal.met} for goal in record.goals],
            "proofs": [asdict(proof) for proof in record.proofs],
            "steps": [asdict(step) for step in record.steps],
        }

    def __rich__(self) -> RenderableType:
        """What a terminal shows."""
        proofs = ", ".join(
            f"{proof.name} {proof.value:.0e}" if proof.tolerance else proof.name for proof in self.record.proofs
        )
        return Group(
            "",
            *(Text(sentence) for sentence in summary(self.record)),
            Text(f"Proved in this run: {proofs}." if proofs else ""),
            "",
            Text.assemble("model   ", (str(self.folder), "bold")),
            Text.assemble("report  ", (str(self.page), "bold")),
            "",
            comparison_table(self.record),
        )


def run_job(file: JobFile[Job], stages: Stages) -> Outcome:
    """Do what a job file says, and write artefact, report and a copy of the job into its output folder.

    Args:
        file: The job.
        stages: Where to show how far it is.

    Raises:
        SecateurError: As `secateur.prune`, and for what the job names.
    """
    job, folder = file.job, file.folder
    chosen = _choices(job, folder)
    device = _device(job.device)
    with claim(file) as output:
        with stages.stage("load"):
            torch.manual_seed(job.seed)  # of a model that is built with random weights, and of data that are shuffled
            subject = load_model(job.model, inputs=job.inputs, weights=job.weights, folder=folder)
            data = load_data(job.data, folder)
            evaluate = _evaluate(job.evaluate, data, folder)
        result = sc.prune(
            subject.model.to(device),
            to_device(subject.inputs, device),
            data=data.train,
            evaluate=evaluate and _shown(evaluate, stages),
            progress=stages,
            name=subject.name,
            **chosen,
        )
        with stages.stage("save"):
            record = _completed(result.report, file)
            sc.save(result.model, output, result.plan)
            page = report.write(record, output)
            (output / PROGRAM).unlink(missing_ok=True)  # that of an earlier run
            if job.export:
                artefact.export(result.model, output / PROGRAM, result.network.inputs)
    return Outcome(result.model, record, output, page)


def _choices(job: Job, folder: Path) -> dict[str, Any]:
    """Everything of the job that is an argument of `secateur.prune` as it is; wrong names and values end here."""
    budget = sc.Budget(**job.budget.model_dump())
    exclude, multiple_of = job.exclude, job.multiple_of
    allocation = choices.prepare("allocation", job.allocation)
    choices.attempt(partial(allocation, budget, exclude=exclude, multiple_of=multiple_of), "allocation")
    chosen = {
        "budget": budget,
        "score": choices.attempt(choices.prepare("score", job.score), "score") if job.score else None,
        "allocation": allocation,
        "exclude": exclude,
        "multiple_of": multiple_of,
        "form": job.form,
        "sparsify": _sparsify(job.sparsify) if job.sparsify else None,
        "recover": _recovery(job.recovery, job.seed, folder) if job.recovery else None,
        "seed": job.seed,
        "measure": job.measure,
        "target": choices.attempt(choices.prepare("target", job.target), "target"),
    }
    if job.compensation is not None:
        chosen["compensation"] = tuple(choices.choose("compensation", name)() for name in job.compensation)
    return chosen


def _sparsify(table: Sparsification) -> Callable[..., sc.SparseResult]:
    return partial(sc.sparsify, exclude=table.exclude or (), **choices.sparsification(table))


def _recovery(recovery: Recovery, seed: int, folder: Path) -> Any:
    if recovery.function is not None:
        others = recovery.model_fields_set - {"function"}
        if others:
            raise JobError(
                f"recovery: with a function of your own, {', '.join(sorted(others))} is of no use; leave it out"
            )
        return find_object(recovery.function, folder, "the training function")
    return sc.recover.FineTune(
        epochs=recovery.epochs,
        optimizer=choices.choose("optimizer", recovery.optimizer) if recovery.optimizer else None,
        learning_rate=recovery.learning_rate,
        weight_decay=recovery.weight_decay,
        batch_limit=recovery.batch_limit,
        distill=sc.recover.Distill(**recovery.distillation.model_dump()) if recovery.distillation else None,
        seed=seed,
    )


Evaluate = Callable[[nn.Module], Any]


def _evaluate(spec: str | None, data: Data, folder: Path) -> Evaluate | None:
    """A measure by name on the job's data, or the user's own function of a model."""
    if spec is None:
        return None
    if ":" in spec:
        own = find_object(spec, folder, "evaluate")
        return lambda model: guarded(lambda: own(model), f"evaluate {spec!r}")
    measure = choices.choose("evaluate", spec)
    if data.evaluate is None:
        raise JobError(
            f"evaluate = {spec!r} needs data to evaluate on: let the data's factory return a dict with train and evaluate"
        )
    return partial(measure, batches=data.evaluate)


def _shown(evaluate: Evaluate, stages: Stages) -> Evaluate:
    """The same measure, with its result in the progress display."""

    def evaluated(model: nn.Module) -> Any:
        found = evaluate(model)
        named = found if isinstance(found, Mapping) else {"accuracy": found}
        with suppress(TypeError, ValueError, ZeroDivisionError):  # what is no number is the library's to refuse
            stages.note(", ".join(f"{name} {quantity(100 * share_of(value)[0], '%')}" for name, value in named.items()))
        return found

    return evaluated


def _completed(record: RunRecord, file: JobFile[Job]) -> RunRecord:
    """The record with what only the job knows: how to run it again."""
    again = replace(record.reproduction, command=f"{file.job.command} {file.path}", job=file.text)
    return replace(record, reproduction=again)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise JobError(f"device = {name!r} is not usable here: {error}") from error
