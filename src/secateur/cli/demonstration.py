"""The demonstration: trains a real network on real images, and from there on is a job like any other."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from secateur.cli.job import Job, JobFile, read_job
from secateur.cli.output import JOB, STAMP, refuse_foreign
from secateur.cli.progress import Stages
from secateur.cli.run import Outcome, run_job
from secateur.demo import ResidualNet, mnist, train
from secateur.demo.reload import fingerprint
from secateur.errors import ArtefactError, VerificationError
from secateur.train.recover import Step

DENSE = "dense.safetensors"


def run_demo(folder: Path, stages: Stages) -> Outcome:
    """Train, run the job, and check in a new process that what was saved is what was made.

    Args:
        folder: Where everything goes; made where it is missing.
        stages: Where to show how far it is.

    Raises:
        JobError: The folder holds other files.
        MissingExtraError: The package with the images is not installed.
        ArtefactError: The folder cannot be written to.
        VerificationError: The reloaded network answers differently.
    """
    refuse_foreign(folder)
    file = _written_job(folder)
    _train(folder / DENSE, stages)
    outcome = run_job(file, stages)
    with stages.stage("reload"):
        _check_in_new_process(outcome.model.eval(), folder)
        stages.note("bit for bit the same answers in a new process")
    return outcome


def _written_job(folder: Path) -> JobFile[Job]:
    text = files("secateur.demo").joinpath(JOB).read_text(encoding="utf-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB).write_text(STAMP + text, encoding="utf-8")
    except OSError as error:
        raise ArtefactError(
            f"cannot write into {folder}: {error.strerror or error}; choose another folder with --output"
        ) from error
    return read_job(folder / JOB)


def _train(path: Path, stages: Stages) -> None:
    with stages.stage("images"):
        batches = mnist()["train"]
    torch.manual_seed(0)
    model = ResidualNet()

    def progress(step: Step) -> None:
        stages.note(f"loss {step.loss:.3f}")
        stages("train", step.step, step.steps or step.step)

    stages("train", 0, 1)
    train(model, batches, progress=progress)
    save_file(model.state_dict(), path)


def _check_in_new_process(model: nn.Module, folder: Path) -> None:
    command = [sys.executable, "-m", "secateur.demo.reload", str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VerificationError(f"a new process could not load the network from {folder}: {done.stderr.strip()}")
    if done.stdout != fingerprint(model):
        raise VerificationError(f"the network that a new process loads from {folder} answers differently")
