"""A model as a program of `torch.export`: one file that runs without the model's code."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from secateur.errors import ArtefactError
from secateur.torch import Inputs
from secateur.torch.graph import exported
from secateur.torch.replicate import replicate


def export(model: nn.Module, path: str | Path, example_inputs: Inputs) -> None:
    """Write a model as a program that `torch.export.load(path).module()` runs, in eval mode.

    The first dim of each input, the batch, may vary where the model lets it. Whoever is killed while it is written leaves what
    was there before.

    Args:
        model: A module that `torch.export` can export, pruned or dense.
        path: The file, `.pt2`; an earlier one is replaced.
        example_inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Raises:
        CaptureError: `torch.export` cannot export the model; names its reason and the line.
        ArtefactError: The name does not end in `.pt2`, or the file cannot be written.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "small.pt2")
        >>> export(nn.Linear(3, 2), path, torch.zeros(4, 3))
        >>> torch.export.load(path).module()(torch.zeros(7, 3)).shape
        torch.Size([7, 2])
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ArtefactError(f"a program is written as .pt2, not as {path.name!r}")
    program = exported(replicate(model, lambda tensor: tensor.detach().clone()).eval(), example_inputs)
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as private:
            torch.export.save(program, Path(private, path.name))
            Path(private, path.name).replace(path)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error}; choose another folder") from error
