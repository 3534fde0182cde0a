"""Runs a job of `secateur sparsify`, read top-down: check, claim the output, load, solve, compare, save, report."""

import os
import shutil
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur import account, report
from secateur.cli import choices, libraries
from secateur.cli.job import JobFile, Reconstruction, SparseJob
from secateur.cli.output import claim
from secateur.cli.progress import Stages
from secateur.cli.run import Outcome
from secateur.errors import ArtefactError, DataError, JobError, ModelError
from secateur.language import Fidelity, fidelity, read_text, sequences
from secateur.report import Reproduction, Row, RunRecord
from secateur.report.quantity import quantity
from secateur.torch.spill import spilling

LAYERS = "layers"
"""The folder of the output that has what is solved already, while the job runs."""

TOGETHER = 4
"""Sequences of a step of training."""

AT_ONCE = 1 << 27
"""Bytes that transformers makes of weights, when it loads and saves them, before they are moved to the disk."""

ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""With this in the environment, transformers makes one weight after the other, and in our thread."""

LARGEST_FILE = "2GB"
"""Of the weights, so that little has to be in memory while they are written."""


def run_sparse_job(file: JobFile[SparseJob], stages: Stages) -> Outcome:
    """Do what a job file says; a job that was killed goes on where it stopped.

    Args:
        file: The job.
        stages: Where to show how far it is.

    Raises:
        SecateurError: As `secateur.sparsify`, and for what the job names.
    """
    job = file.job
    if job.reconstruct is not None and job.rounding is not None:
        raise JobError(
            "reconstruct: it would train weights off the numbers that rounding allows; leave one of both out"
        )
    chosen = choices.sparsification(job)
    with claim(file) as output:
        with stages.stage("load"):
            texts = _texts(file)
            model = _model(file, output / LAYERS)
            tokenizer = _tokenizer(file.folder / job.model)
            calibration = _tokens(texts["calibrate"], tokenizer, model, job.length, job.samples)
            test = None
            if "evaluate" in texts:
                test = _tokens(texts["evaluate"], tokenizer, model, job.length, job.evaluate_samples)
        result = sc.sparsify(
            model,
            [{"input_ids": calibration}],
            exclude=_exclude(job, model),
            journal=output / LAYERS,
            progress=partial(_shown, stages),
            **chosen,
        )
        if job.reconstruct is not None:
            _reconstruct(job.reconstruct, model, result, calibration, stages)
        found = None
        if test is not None:
            found = fidelity(result.model, model, test, progress=lambda done, total: stages("evaluate", done, total))
        with stages.stage("save"):
            _save(result.model, tokenizer, output)
            record = _record(file, model, result, found)
            page = report.write(record, output)
            shutil.rmtree(output / LAYERS)
    return Outcome(result.model, record, output, page)


def _texts(file: JobFile[SparseJob]) -> dict[str, str]:
    named = {"calibrate": file.job.calibrate, "evaluate": file.job.evaluate}
    return {key: read_text(file.folder / name) for key, name in named.items() if name is not None}


def _model(file: JobFile[SparseJob], room: Path) -> Any:
    """The dense model: weights that lie in the files as they are needed are mapped from there, others from files in `room`."""
    for left in room.glob(f"{tempfile.gettempprefix()}*"):  # by a job that was killed while it wrote
        left.unlink()
    before = os.environ.get(ONE_BY_ONE)
    os.environ[ONE_BY_ONE] = "1"
    try:
        with spilling(room, AT_ONCE):
            return libraries.hugging_face(file.job.model, file.folder, known=True)[0].eval()
    finally:
        if before is None:
            del os.environ[ONE_BY_ONE]
        else:
            os.environ[ONE_BY_ONE] = before


def _tokenizer(folder: Path) -> Any:
    try:
        return libraries.library("transformers").AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be read: {error}; save it beside the model") from error


def _tokens(text: str, tokenizer: Any, model: Any, length: int, samples: int) -> Tensor:
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and length > longest:
        raise DataError(f"length = {length}: the model reads at most {longest} tokens at once")
    found = sequences(text, tokenizer, length, samples)
    vocabulary = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if vocabulary is not None and int(found.max()) >= vocabulary:
        raise ModelError(
            f"the tokenizer gives token {int(found.max())}, and the model has {vocabulary}; save the tokenizer that the model "
            "was trained with beside it"
        )
    return found


def _exclude(job: SparseJob, model: Any) -> tuple[str, ...]:
    """What the job says stays dense; or the layer that makes logits, where it says nothing of it."""
    if job.exclude is not None or job.include:
        return job.exclude or ()
    head = getattr(model.get_output_embeddings(), "weight", None)
    return tuple(name for name, parameter in model.named_parameters() if parameter is head)


def _shown(stages: Stages, layer: str, done: int, total: int) -> None:
    stages.note(layer if done < total else f"{total} layers")
    stages("sparsify", done, total)


def _reconstruct(
    how: Reconstruction, model: nn.Module, result: sc.SparseResult, calibration: Tensor, stages: Stages
) -> None:
    """Train block by block, on the sequences that layers were solved on."""
    for parameter in result.model.parameters():  # which are mapped from files, or the dense model's own
        parameter.data = parameter.detach().clone()
    fit = sc.recover.FineTune(
        epochs=how.epochs, optimizer=torch.optim.AdamW, learning_rate=how.learning_rate, weight_decay=0.0
    )
    blocks = 0

    def shown(step: sc.recover.Step) -> None:
        nonlocal blocks
        blocks += step.step == 1
        stages.note(f"block {blocks}, off by {quantity(100 * step.loss, '%')}")

    batches = [{"input_ids": ids} for ids in torch.split(calibration, TOGETHER)]
    with stages.stage("reconstruct"), sc.train.masked(result.model, result.plan):
        sc.recover.Reconstruct(fit=fit, samples=len(calibration))(result.model, batches, model, shown)
        stages.note(f"{blocks} blocks")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model as `from_pretrained` reads it."""
    try:
        with spilling(folder / LAYERS, AT_ONCE):
            model.save_pretrained(folder, max_shard_size=LARGEST_FILE)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise ArtefactError(
            f"the model cannot be written into {folder}: {error}; make room and run the job again: what is solved is kept"
        ) from error


def _record(file: JobFile[SparseJob], dense: Any, result: sc.SparseResult, found: Fidelity | None) -> RunRecord:
    job, name = file.job, Path(file.job.model).name
    return RunRecord(
        title=f"{name}, sparse",
        model=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=(*_rows(found), *account.weight_rows(dense, result)),
        weights=account.weight_records(result),
        reproduction=Reproduction(
            command=f"{job.command} {file.path}",
            job=file.text,
            versions=account.versions(),
            machine=account.machine(),
        ),
        notes=_notes(job, result, found),
    )


def _rows(found: Fidelity | None) -> list[Row]:
    if found is None:
        return []
    rows = []
    if found.perplexity is not None:
        rows.append(Row("perplexity", "", found.dense_perplexity, found.perplexity, "lower"))
    if found.divergence is not None and found.agreement is not None:
        rows.append(Row("divergence", "nats", 0.0, found.divergence, "lower", "difference"))
        rows.append(Row("same first token", "%", 100.0, 100 * found.agreement, "higher", "difference"))
    if found.cosine is not None:
        rows.append(Row("cosine of the states", "", 1.0, found.cosine, "higher", "difference"))
    return rows


def _notes(job: SparseJob, result: sc.SparseResult, found: Fidelity | None) -> tuple[str, ...]:
    notes = [f"Solved on {result.samples} sequences of {job.length} tokens."]
    if job.reconstruct is not None:
        notes.append(
            f"Then every block was trained on them for {job.reconstruct.epochs} epochs; errors are those before."
        )
    if found is not None:
        notes.append(
            f"Compared on {found.sequences} sequences of {found.length} tokens; perplexities of other lengths are other numbers."
        )
    notes.append(
        "The folder has zeros as ordinary numbers, as transformers reads it; secateur.save stores them in a bit each."
    )
    return tuple(notes)
