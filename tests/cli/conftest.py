"""A small model of a user, with data, as files in a folder of its own; and the command line, run in this process."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.cli.app import app

NET = '''
"""A user's own model."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last((x + torch.relu(self.second(x))).mean((2, 3)))


def build():
    return Net()


def build_with_inputs():
    return Net(), torch.zeros(1, 1, 6, 6)


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 1, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long()
    return {"train": list(zip(images.split(10), labels.split(10))), "evaluate": [(images, labels)]}


def train_batches():
    return batches()["train"]


def quality(model):
    return {"margin": 0.5}
'''

JOB = """
model = "net.py:build_with_inputs"
data = "net.py:batches"
evaluate = "accuracy"
output = "out"
measure = false

[budget]
macs = 0.5
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with `net.py` and `job.toml`, in which commands run."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "job.toml").write_text(JOB)
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def secateur() -> Callable[..., Ended]:
    """Runs `secateur ...`."""

    def run(*arguments: object) -> Ended:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run
